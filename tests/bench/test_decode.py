"""A token awake beside others: right first, then timed, and the verdicts follow from the rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_benchmark import PEAK, Calls, Parts, never, one_round

from reverie.bench import decode
from reverie.bench.card import number
from reverie.bench.decode import COMPILED, OURS, PRODUCTS, measure
from reverie.bench.timer import Timing
from reverie.errors import UserError
from reverie.model import HybridConfig, HybridLM
from reverie.model.awake import Awake, AwakeGraph
from reverie.sleep import SleepConfig

pytestmark = [pytest.mark.slow, pytest.mark.hf]


@pytest.fixture
def config(tiny_config: Callable[..., HybridConfig], monkeypatch: pytest.MonkeyPatch) -> HybridConfig:
    monkeypatch.setattr(decode, "TOKENS", 3)
    return tiny_config("attn", "gdn", "attn", "gdn")


def take_graph(model: HybridLM, config: SleepConfig, *, batch_size: int, wrong: float = 0.0) -> Path:
    """In the place of `compile_awake`: the graph itself."""
    graph = AwakeGraph(model, config.window_size, config.window_size)

    def run(*given: Any) -> Any:
        logits, *rest = graph(*given)
        return logits * (1 + wrong), *rest

    sizes = {"span": config.window_size, "places": config.window_size, "batch_size": batch_size}
    model.awake[batch_size] = Awake(model, run, **sizes)
    return Path()


def test_all_sides_are_measured(config: HybridConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "compile_awake", take_graph)
    monkeypatch.setattr(decode, "alternate", one_round)
    threads, parts = torch.get_num_threads(), Parts()
    findings = measure(PEAK, parts, config, 8, sizes=((1, 1), (2, 1)))
    parts.assert_whole()
    assert torch.get_num_threads() == threads
    targets, rows = findings.details.tables.values()
    assert len(targets) == 3
    for B in (1, 2):
        models = {row["model"] for row in rows if row["B"] == B}
        assert models >= {OURS, COMPILED, PRODUCTS, "OlmoHybrid, forward", "Qwen3Next, generate"}
    assert all(number(row, "ms") > 0 for row in rows)
    assert findings.ratio == pytest.approx(number(targets[0], "ratio"), rel=1e-4)


def test_ratios_are_of_the_same_round(config: HybridConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that gets slower all the time."""
    cost = {OURS: 1.0, COMPILED: 0.3, PRODUCTS: 0.1, "OlmoHybrid, forward": 4.0}

    def timed(calls: Calls, **_: Any) -> dict[str, Timing]:
        return {name: Timing(rounds=[cost.get(name, 5.0) * slow for slow in (1.0, 2.0, 9.0)]) for name in calls}

    monkeypatch.setattr(decode, "compile_awake", take_graph)
    monkeypatch.setattr(decode, "alternate", timed)
    findings = measure(PEAK, Parts(), config, 8, sizes=((1, 1),))
    targets = {row["what"]: (row["ratio"], row["verdict"]) for row in findings.details.tables["targets"]}
    assert list(targets.values()) == [
        (pytest.approx(0.25), "met"),
        (pytest.approx(0.075), "met"),
        (pytest.approx(3.0), "not met"),
    ]


def test_nothing_wrong_is_timed(config: HybridConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "alternate", never)

    def compile_wrongly(model: HybridLM, config: SleepConfig, *, batch_size: int) -> Path:
        return take_graph(model, config, batch_size=batch_size, wrong=0.01)

    monkeypatch.setattr(decode, "compile_awake", compile_wrongly)
    with pytest.raises(UserError, match="nothing is measured: of the logits compiled the worst"):
        measure(PEAK, Parts(), config, 8, sizes=((1, 1),))
