"""Figures 2a, 2b and 3 from invented cards: each shows what it must, and a mix of tasks is refused."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_cards import run_card, summary

from reverie.results.card import Chance, CurvePoint, ModelKind, RunCard, save_card

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))
figures: Any = importlib.import_module("figures")

STEP_TOKENS = 51_200


def rule110_card(t: int, passes: int, points: int = 16, steps: int = 800, top: float = 1.0) -> RunCard:
    """A curve that rises from guessing to `top`, later for larger t."""
    curve = []
    for i in range(1, points + 1):
        exact = 0.08 + (top - 0.08) / (1 + math.exp(-1.2 * (i - t / 2)))
        score = summary({t: exact**0.25}, exact)
        step = i * steps // points
        curve.append(CurvePoint(step=step, tokens=step * STEP_TOKENS, wall_time_s=i, train_loss=0.5, score=score))
    model: ModelKind = "hybrid" if passes == 1 else "sleep"
    card = run_card(model, passes, 0, curve[-1].score, curve=curve, steps=steps, tokens=steps * STEP_TOKENS,
                    chance=Chance(by_depth={str(t): 0.53}, exact=0.08))  # fmt: skip
    return card.model_copy(update={"recipe": card.recipe | {"task": {"name": "rule110"}, "train": {"steps": steps}}})


def depo_card(passes: int) -> RunCard:
    hops, curve = [1, 2, 4, 8, 16], []
    for i in range(1, 21):
        accuracies = {k: 0.03 + 0.97 / (1 + math.exp(-0.8 * (i - 3 * k / passes))) for k in hops}
        curve.append(CurvePoint(step=500 * i, tokens=i, wall_time_s=i, train_loss=1, score=summary(accuracies, 0.1)))
    card = run_card("hybrid" if passes == 1 else "sleep", passes, 0, curve[-1].score, curve=curve, steps=10_000)
    return card.model_copy(update={"recipe": card.recipe | {"train": {"steps": 100_000}}})


def t32_cards() -> dict[str, RunCard]:
    return {f"n{n}": rule110_card(32, n, points=40, steps=20_000, top=0.1 * n) for n in (1, 2, 3, 4)}


def legend(drawing: Any) -> list[str]:
    return [text.get_text() for text in drawing.legends[0].get_texts()]


def test_figure_2a_has_a_line_for_each_t() -> None:
    cards = {f"t{t}": rule110_card(t, 1) for t in (16, 4, 8, 10, 12, 14)}
    drawing = figures.figure_of("rule110, depth", cards)
    assert legend(drawing) == [*(f"t = {t}" for t in (4, 8, 10, 12, 14, 16)), "guessing"]
    assert drawing.axes[0].get_xscale() == "linear"


def test_figure_2b_stands_beside_the_paper() -> None:
    drawing = figures.figure_of("rule110, t32", t32_cards())
    assert drawing.axes[0].get_xscale() == "log"
    names = legend(drawing)
    assert names[:4] == ["N = 1 (hybrid)", "N = 2 (sleep)", "N = 3 (sleep)", "N = 4 (sleep)"]
    assert "paper, N = 2" in names
    assert "paper, N = 3 and 4: above" in names
    marks = {line.get_label(): line.get_xydata()[0] for line in drawing.axes[0].lines if "paper" in line.get_label()}
    assert list(marks["paper, N = 1"]) == [5e9, 0.10]


def test_figure_3_has_a_panel_for_each_depth() -> None:
    drawing = figures.figure_of("depo, hops", {f"n{n}": depo_card(n) for n in (1, 2, 4)})
    assert [axes.get_title(loc="left") for axes in drawing.axes] == [f"hops k = {k}" for k in (1, 2, 4, 8, 16)]
    assert drawing.axes[0].get_xlabel() == "steps"
    assert legend(drawing)[:3] == ["N = 1 (hybrid)", "N = 2 (sleep)", "N = 4 (sleep)"]


def test_tries_that_share_their_passes_go_by_name() -> None:
    cards = {name: rule110_card(32, 4) for name in ("lr-1e-3", "lr-4e-3")}
    assert legend(figures.figure_of("rule110-beyond, rates", cards)) == ["lr-1e-3", "lr-4e-3", "guessing"]


def test_a_run_that_is_going_has_an_open_end() -> None:
    done = rule110_card(8, 1)
    going = done.model_copy(update={"recipe": done.recipe | {"train": {"steps": 5000}}})
    ends = []
    for card in (done, going):
        axes = figures.figure_of("x", {"a": card}).axes[0]
        ends.append(sum(line.get_marker() == "o" for line in axes.lines))
    assert ends == [0, 1]


def test_what_cannot_be_drawn_together_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_card(rule110_card(8, 1), tmp_path / "a.json")
    save_card(depo_card(1), tmp_path / "b.json")
    paths = [str(tmp_path / name) for name in ("a.json", "b.json")]
    assert figures.main([*paths, "--out", str(tmp_path / "a.png")]) == 2
    assert capsys.readouterr().err == "error: the runs must be of one task, and they are of depo, rule110\n"
    assert figures.main([paths[0], "--out", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_speeds_show_what_is_right_alone() -> None:
    row = {"seconds_per_step": 0.005, "tokens_per_s": 1e7, "floor_s": 0.0015}
    ways = [{"name": "triton, compiled CUDA graph", **row}, {"name": "fla, compiled", "why": "wrong"}]
    card = {
        "name": "rule110", "machine": {"gpu": "Some GPU"},
        "groups": [{"group": "t32", "ways": ways, "variants": [{"variant": "n4", "name": "triton", **row}]}],
    }  # fmt: skip
    axes = figures.speeds(card).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["triton, compiled CUDA graph", "n4: triton"]
