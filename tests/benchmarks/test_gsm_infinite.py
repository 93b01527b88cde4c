"""The generator's benchmark on a thousand problems: what it writes, and that no failure passes."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reverie.errors import UserError
from reverie.pretrained.smollm2 import load_smollm2
from reverie.tasks.gsm_infinite import check
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


def test_every_problem_is_solved_and_the_worse_speed_over_its_target_is_the_result(
    smollm2: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--count", 1000, "--out", tmp_path / "generator.json", "--json")
    card, result = json.loads((tmp_path / "generator.json").read_text()), json.loads(capsys.readouterr().out)
    assert card["problems"] == result["details"]["problems"] == 1000
    assert card["problems_per_second"] == SPEEDS
    assert {key: result[key] for key in ("ratio", "target", "met")} == {"ratio": 1.5, "target": 1.0, "met": True}


def test_a_speed_below_its_target_is_a_result() -> None:
    card = {"name": "", "problems": 1, "hardware": {}, "problems_per_second": {"unpadded": 3000.0, "padded": 150.0}}
    result = benchmark.result(card)
    assert {key: result[key] for key in ("ratio", "met")} == {"ratio": 0.5, "met": False}


@pytest.mark.parametrize("wrong", ["answer", "operations"])
def test_a_problem_that_is_not_solved_ends_it(
    smollm2: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    """No card then, no speed, and nothing on stdout."""
    values, out = iter([-1]), tmp_path / "card.json"

    def wrong_once(problem: Problem) -> Solution:
        solution = work_out(problem)
        return replace(solution, **{wrong: next(values, getattr(solution, wrong))})

    monkeypatch.setattr(check, "work_out", wrong_once)
    with pytest.raises(SystemExit, match=r"^error: 1 faults in 1000 problems; the first is .*line 1 has "):
        run(monkeypatch, "--count", 1000, "--out", out, "--json")
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


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


def test_the_docs_quote_the_card_in_results() -> None:
    root = Path(__file__).parents[2]
    card = json.loads((root / "results" / "gsm_infinite" / "generator.json").read_text(encoding="utf-8"))
    page = (root / "docs" / "GSM_INFINITE.md").read_text(encoding="utf-8")
    assert f"{card['problems']:,} problems" in page
    for name, rate in card["problems_per_second"].items():
        assert f"{rate:,.0f} {name}" in page
