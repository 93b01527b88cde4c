"""`reverie compare` and `demo` plan what was asked for; what they train and draw is tested where that is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from command_line import Reverie, in_empty_folder, the_json
from fake_cards import comparison
from tiny_recipe import write_tiny

from reverie.recipe import load_recipe
from reverie.train.plan import Run


@pytest.fixture
def reverie(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Reverie:
    return in_empty_folder(monkeypatch, capsys, tmp_path)


class Compared(NamedTuple):
    name: str
    metric: str
    runs: Sequence[Run]
    out: Path
    jobs: int
    device: str


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[Compared]:
    """What the command line asks to compare; instead of training, the answer is an invented card."""
    asked: list[Compared] = []

    def fake(name: str, metric: str, runs: Sequence[Run], out: Path, *, jobs: int, device: str, report: Any) -> Any:
        asked.append(Compared(name, metric, runs, out, jobs, device))
        return comparison(seeds=1, points=2)

    monkeypatch.setattr("reverie.train.compare.compare", fake)
    return asked


def test_compare_runs_what_was_asked_for(reverie: Reverie, tmp_path: Path, compared: list[Compared]):
    recipe = write_tiny(tmp_path)
    done = reverie(
        "compare", recipe, "--passes", "1,3", "--seeds", "4, 5", "--no-transformer", "--jobs", "3", "--device", "cpu",
        "--set", "train.steps=7", "--set", 'train.metric="exact"',
    )  # fmt: skip
    assert done.code == 0
    assert "transformer" in done.out  # of the invented card
    assert done.err == "figure in runs/compare/tiny/figure.png\n"
    [asked] = compared
    assert (asked.name, asked.metric, asked.out) == ("tiny", "exact", Path("runs/compare/tiny"))
    assert (asked.jobs, asked.device) == (3, "cpu")
    assert [run.name for run in asked.runs] == [
        "sleep-3-seed-4", "sleep-3-seed-5", "hybrid-seed-4", "hybrid-seed-5",
    ]  # fmt: skip
    assert {run.recipe.train.steps for run in asked.runs} == {7}


def test_compare_by_default_takes_three_numbers_of_passes_three_seeds_and_the_transformer(
    reverie: Reverie, tmp_path: Path, compared: list[Compared]
):
    card = the_json(reverie("compare", write_tiny(tmp_path), "--out", "here", "--json"))
    assert card["kind"] == "comparison"
    [asked] = compared
    assert len(asked.runs) == (3 + 1) * 3
    assert asked.out == Path("here")
    assert asked.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert asked.jobs >= 1


def test_compare_varies_any_keys(reverie: Reverie, tmp_path: Path, compared: list[Compared]):
    """Commas inside brackets and quotes are of the value; other N and the transformer come only if asked for."""
    recipe, keys = write_tiny(tmp_path), ["--vary", "model.update_rule = hebbian, delta", "--vary", "train.seed=1,2"]
    lists = ["--vary", 'model.layers=["attn", "gdn"],["gdn","gdn"]']
    the_json(reverie("compare", recipe, *keys, *lists, "--json"))
    the_json(reverie("compare", recipe, *keys, "--passes", "1..2", "--transformer", "--json"))
    first, second = (asked.runs for asked in compared)
    assert len(first) == 2 * 2 * 2
    assert {run.recipe.hybrid.layers for run in first} == {("attn", "gdn"), ("gdn", "gdn")}
    assert {run.recipe.train.seed for run in first} == {1, 2}
    assert {run.recipe.sleep.num_sleep_passes for run in first} == {2}
    assert len(second) == 2 * 2 * (2 + 1)


def test_passes_and_seeds_are_keys_like_others(reverie: Reverie, tmp_path: Path, compared: list[Compared]):
    recipe = write_tiny(tmp_path)
    the_json(reverie("compare", recipe, "--passes", "1,3", "--seeds", "4,5", "--json"))
    keys = ["--vary", "sleep.num_sleep_passes=1,3", "--vary", "train.seed=4", "--vary", "train.seed=5"]
    the_json(reverie("compare", recipe, *keys, "--json"))
    first, second = compared
    assert first == second


def test_demo_trains_three_models_on_the_demo_recipe(reverie: Reverie, compared: list[Compared]):
    the_json(reverie("demo", "--json"))
    [asked] = compared
    assert [run.name for run in asked.runs] == ["sleep-3-seed-0", "hybrid-seed-0", "transformer-seed-0"]
    assert asked.out == Path("runs/demo")
    assert asked.runs[0].recipe.task == load_recipe("demo").task
