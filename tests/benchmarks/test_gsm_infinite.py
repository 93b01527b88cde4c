"""The generator's benchmark on a thousand problems: what it counts, what it writes, and that no failure passes."""

from __future__ import annotations

import importlib
import json
import sys
from argparse import Namespace
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reverie.errors import UserError
from reverie.pretrained.smollm2 import load_smollm2
from reverie.tasks.gsm_infinite.parser import Problem
from reverie.tasks.gsm_infinite.solver import Solution, work_out

pytestmark = pytest.mark.slow

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
benchmark: Any = importlib.import_module("gsm_infinite")
SPEEDS = {"unpadded": 3000.0, "padded": 450.0}


@pytest.fixture(scope="module")
def smollm2() -> None:
    try:
        load_smollm2()
    except UserError as error:
        pytest.skip(str(error))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(benchmark, "speed", lambda: SPEEDS)
    monkeypatch.setattr(sys, "argv", ["gsm_infinite.py", "--workers", "1", *map(str, arguments)])
    benchmark.main()


@pytest.fixture(scope="module")
def written(smollm2: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of one run, with what was printed beside it."""
    out = tmp_path_factory.mktemp("benchmark") / "generator.json"
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark.publish, "print", printed.append, raising=False)
        run(patch, "--count", 1000, "--out", out)
    out.with_suffix(".md").write_text("\n".join(printed))
    return out


@pytest.fixture
def card(written: Path) -> dict[str, Any]:
    return json.loads(written.read_text())


def test_every_problem_is_solved(card: dict[str, Any]) -> None:
    assert card["problems"] == card["solved"] == card["operations_right"] >= 1000
    assert card["problems_per_second"] == SPEEDS


def test_the_card_holds_every_figure_of_the_benchmark(card: dict[str, Any]) -> None:
    ours, theirs = card["distributions"], benchmark.BENCHMARK
    assert theirs.keys() <= ours.keys()
    for key in ("needed", "asked", "needed share"):
        assert ours[key].keys() == theirs[key].keys()
    for shares in (*ours["needed"].values(), ours["unneeded"]):
        assert sum(shares) == pytest.approx(100, abs=0.5)
        assert len(shares) == len(benchmark.KINDS)
    assert set(ours["reverse answers"]) == {"1", "2", "3", "4"}
    assert 2000 <= ours["tokens"]["padded"][0] <= ours["tokens"]["padded"][-1] <= 3300
    assert ours["quantities"].keys() == theirs["quantities"].keys()


def test_numbers_are_near_the_benchmark_s(card: dict[str, Any]) -> None:
    ours, theirs = card["distributions"], benchmark.BENCHMARK
    for name, shares in theirs["needed"].items():
        assert ours["needed"][name] == pytest.approx(shares, abs=12)


def test_tables(written: Path) -> None:
    tables = written.with_suffix(".md").read_text().split("\n\n")
    assert len(tables) == 5
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
        assert table.splitlines()[1].replace("| ", "").replace("---", "").strip(" |") == ""


@pytest.mark.parametrize(("padded", "ratio", "met"), [(450.0, 1.5, True), (150.0, 0.5, False)])
def test_the_result_is_the_worse_speed_over_its_target(
    card: dict[str, Any], padded: float, ratio: float, met: bool
) -> None:
    card["problems_per_second"] = {"unpadded": 3000.0, "padded": padded}
    result = benchmark.result(card)
    assert {key: result[key] for key in ("ratio", "target", "met")} == {"ratio": ratio, "target": 1.0, "met": met}
    assert result["details"]["problems"] == card["problems"]


def test_a_problem_that_is_not_solved_ends_it(
    smollm2: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No card then, no speed, and nothing on stdout."""
    few, answers, out = benchmark._chunks(1000)[:2], iter([-1]), tmp_path / "card.json"

    def wrong_once(problem: Problem) -> Solution:
        solution = work_out(problem)
        return replace(solution, answer=next(answers, solution.answer))

    monkeypatch.setattr(benchmark, "_chunks", lambda count: few)
    monkeypatch.setattr(benchmark, "distributions", lambda facts: {})
    monkeypatch.setattr(benchmark, "work_out", wrong_once)
    monkeypatch.setattr(benchmark, "ProcessPoolExecutor", lambda workers: nullcontext(Namespace(map=map)))
    with pytest.raises(SystemExit, match=r"^error: 1 of 20 problems are not solved; the first is \{'cell'"):
        run(monkeypatch, "--out", out, "--json")
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [1000, 100_000])
def test_chunks(count: int) -> None:
    chunks = benchmark._chunks(count)
    assert len({(cell, i) for cell, indices in chunks for i in indices}) == sum(len(indices) for _, indices in chunks)
    assert count <= sum(len(indices) for _, indices in chunks) <= 1.05 * count
    assert max(len(indices) for _, indices in chunks) <= 250
    padded = Counter[bool]()
    for cell, indices in chunks:
        padded[cell.padded] += len(indices)
    assert padded[True] / padded.total() == pytest.approx(0.06, abs=0.025)
    assert {cell.operations for cell, _ in chunks} == set(range(1, 31))


def test_speed_is_measured(smollm2: None) -> None:
    rates = benchmark.speed(seconds=0.0)
    assert rates.keys() == SPEEDS.keys()
    assert 0 < rates["padded"] < rates["unpadded"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", 999], "--count must be at least 1000, got 999: less says nothing about rare sentences"),
        (["--workers", 0], "--workers must be at least 1, got 0"),
    ],
)
def test_bad_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[object], message: str
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, *arguments)
    assert message in capsys.readouterr().err


def test_the_docs_show_the_card_in_results() -> None:
    root = Path(__file__).parents[2]
    card = json.loads((root / "results" / "gsm_infinite" / "generator.json").read_text(encoding="utf-8"))
    assert card["problems"] == card["solved"] == card["operations_right"] >= 100_000
    page = (root / "docs" / "GSM_INFINITE.md").read_text(encoding="utf-8")
    assert benchmark.markdown(card) in page
    assert f"{card['distributions']['decoys']} % of reverse problems" in page
    for name, rate in card["problems_per_second"].items():
        assert f"{rate:,.0f} {name}" in page
