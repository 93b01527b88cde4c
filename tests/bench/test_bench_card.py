"""What a benchmark says, printed and on file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_benchmark import benchmark_card
from hypothesis import given
from hypothesis import strategies as st

from reverie.bench.card import BenchmarkCard, Findings
from reverie.errors import UserError
from reverie.results.card import load_card, read_card, save_card

KINDS = {"benchmark": BenchmarkCard}


def test_json_has_five_keys_and_all_else_in_details() -> None:
    card = benchmark_card()
    result = json.loads(json.dumps(card.result()))
    assert list(result) == ["name", "ratio", "target", "met", "details"]
    assert (result["name"], result["ratio"], result["target"], result["met"]) == ("fake", 2.0, 3.0, False)
    assert result["details"]["tables"] == card.details.tables
    assert result["details"]["peak"]["float32_gflops"] == 200.0
    assert result["details"]["versions"] == {"torch": "2.13.0"}
    assert result["details"]["hardware"]["cpu"] == "Some CPU"


@pytest.mark.parametrize(
    ("better", "ratio", "met"),
    [("higher", 2.9, False), ("higher", 3.0, True), ("higher", 4.0, True), ("lower", 4.0, False), ("lower", 3.0, True)],
)
def test_met_is_what_ratio_and_target_say(better: str, ratio: float, met: bool) -> None:
    assert benchmark_card(better=better, ratio=ratio, met=met).reached == met
    with pytest.raises(ValueError, match="say otherwise"):
        benchmark_card(better=better, ratio=ratio, met=not met)


@given(off=st.floats(-1e-3, 1e-3))
def test_the_verdict_is_the_same_when_read_back(tmp_path_factory: pytest.TempPathFactory, off: float) -> None:
    """Files hold five digits of a number: a ratio just short of its target must not become the target."""
    path = tmp_path_factory.getbasetemp() / "card.json"
    details = benchmark_card().details
    findings = Findings(name="fake", ratio=3.6 + off, target=3.6, better="lower", details=details)
    save_card(benchmark_card(**dict(findings), met=findings.reached), path)
    assert read_card(path, KINDS).met == findings.reached


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    card = benchmark_card()
    save_card(card, tmp_path / "card.json")
    read = read_card(tmp_path / "card.json", KINDS)
    assert read.details.tables["speed"][1] == card.details.tables["speed"][1]
    assert read.model_copy(update={"details": card.details}) == card
    assert [path.name for path in tmp_path.iterdir()] == ["card.json"]


def test_it_is_no_card_of_a_run(tmp_path: Path) -> None:
    save_card(benchmark_card(), tmp_path / "card.json")
    with pytest.raises(UserError, match="its kind is 'benchmark', which must be 'run' or 'comparison'"):
        load_card(tmp_path / "card.json")


def test_a_changed_verdict_is_no_card(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    save_card(benchmark_card(), path)
    path.write_text(path.read_text().replace('"met": false', '"met": true'))
    with pytest.raises(UserError, match="is not a benchmark card"):
        read_card(path, KINDS)
