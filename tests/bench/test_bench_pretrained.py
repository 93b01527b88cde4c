"""A token of a pretrained model awake: right first, then timed, and the verdicts follow from the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_benchmark import PEAK, Calls, Parts, never, one_round
from tiny_folder import tiny_folder

from reverie.bench import pretrained
from reverie.bench.pretrained import JET, PRODUCTS, UNTOUCHED, measure
from reverie.bench.timer import Timing
from reverie.errors import UserError

pytestmark = pytest.mark.hf


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(pretrained, "TOKENS", 3)
    monkeypatch.setattr(pretrained, "LAYERS", 2)
    return str(tiny_folder(tmp_path / "llama"))


def test_all_sides_are_measured(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "alternate", one_round)
    threads, parts = torch.get_num_threads(), Parts()
    findings = measure(PEAK, parts, base, threads=(1, 2))
    parts.assert_whole()
    assert torch.get_num_threads() == threads
    _, rows = findings.details.tables.values()
    names = [f"{x}, {way}" for x in (UNTOUCHED, JET) for way in ("forward", "generate")]
    in_int8 = [f"{x}, int8, {way}" for x in (UNTOUCHED, JET) for way in ("forward", "generate")]
    for count in (1, 2):
        found = [row["model"] for row in rows if row["threads"] == count]
        assert found == [*names, *in_int8, PRODUCTS, f"{PRODUCTS}, int8"]


def test_ratios_are_of_the_same_round_and_the_worst_counts(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = {f"{JET}, generate": 1.5, f"{JET}, int8, forward": 0.6}

    def timed(calls: Calls, **_: Any) -> dict[str, Timing]:
        return {name: Timing(rounds=[slow.get(name, 0.5) * clock for clock in (1, 5, 2)]) for name in calls}

    monkeypatch.setattr(pretrained, "alternate", timed)
    findings = measure(PEAK, Parts(), base, threads=(1,))
    targets, _ = findings.details.tables.values()
    assert [(row["ratio"], row["verdict"]) for row in targets] == [
        (pytest.approx(3.0), "not met"),
        (pytest.approx(1.2), "not met"),
    ]
    assert findings.ratio == pytest.approx(3.0)


@pytest.mark.parametrize(("name", "most"), [(JET, "TOLERANCE"), ("int8", "INT8_TOLERANCE")])
def test_a_wrong_result_gets_no_time(base: str, monkeypatch: pytest.MonkeyPatch, name: str, most: str) -> None:
    monkeypatch.setattr(pretrained, "alternate", never)
    monkeypatch.setattr(pretrained, most, -1.0)
    with pytest.raises(UserError, match=f"nothing is measured: .*{name}, of the logits the worst is off by"):
        measure(PEAK, Parts(), base)
