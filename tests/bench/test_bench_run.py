"""From findings to a card."""

from __future__ import annotations

import sys
from importlib import import_module
from inspect import signature
from types import ModuleType
from typing import Any

import pytest
from fake_benchmark import PEAK, benchmark_card, never

from reverie.bench import run
from reverie.bench.card import Findings
from reverie.bench.machine import Peak
from reverie.bench.run import BENCHMARKS, run_benchmark
from reverie.errors import UserError
from reverie.results.card import Report


@pytest.fixture(autouse=True)
def peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "measure_peak", lambda: PEAK)


def finds(ratio: float) -> ModuleType:
    """A benchmark that finds this."""

    def measure(peak: Peak, report: Report) -> Findings:
        assert peak is PEAK
        report(0, 1, "everything")
        card = benchmark_card()
        return Findings(name="fake", ratio=ratio, target=3.0, better="higher", details=card.details)

    return benchmark(measure)


def benchmark(measure: Any) -> ModuleType:
    module: Any = ModuleType("fake")
    module.measure = measure
    return module


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_a_file_that_measures(name: str) -> None:
    assert list(signature(import_module(f"reverie.bench.{name}").measure).parameters)[:2] == ["peak", "report"]


@pytest.mark.parametrize(("ratio", "met"), [(2.9, False), (3.1, True)])
def test_the_card_is_of_this_run(monkeypatch: pytest.MonkeyPatch, ratio: float, met: bool) -> None:
    monkeypatch.setitem(sys.modules, "reverie.bench.fake", finds(ratio))
    reported = []
    card = run_benchmark("fake", lambda *part: reported.append(part))
    assert (card.name, card.ratio, card.met, card.peak) == ("fake", ratio, met, PEAK)
    assert card.details == benchmark_card().details
    assert card.hardware.torch.startswith(card.versions["torch"])  # which may lack "+cu130"
    assert card.wall_time_s >= 0
    assert reported == [(0, 1, "everything")]


def test_a_wrong_result_makes_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> Findings:
        raise UserError("nothing is measured")

    monkeypatch.setitem(sys.modules, "reverie.bench.fake", benchmark(wrong))
    monkeypatch.setattr(run, "BenchmarkCard", never)
    with pytest.raises(UserError, match="nothing is measured"):
        run_benchmark("fake")
