"""Peak memory: counted as tensors come and go, and only of steps that are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fake_benchmark import PEAK, Parts, never, one_round

from reverie.bench import memory
from reverie.bench.memory import CHECKPOINTS, Checkpoint, Step, measure, peak_bytes
from reverie.errors import UserError
from reverie.model import HybridConfig, HybridLM

pytestmark = pytest.mark.slow


@pytest.fixture
def step(tiny_config: Callable[..., HybridConfig]) -> Step:
    model = tiny_config("attn", "gdn")
    return Step(model=model, windows=1, passes=1, checkpoint="none", window_size=8, batch_size=2)


def counted(step: Step, windows: int, passes: int, checkpoint: Checkpoint) -> int:
    return peak_bytes(step.but(windows, passes, checkpoint))


# -- counting


def test_checkpointing_keeps_less_the_more_of_it(step: Step) -> None:
    none, by_pass, by_window = (counted(step, 3, 2, kind) for kind in CHECKPOINTS)
    assert by_window < by_pass < none


def test_what_another_window_adds(step: Step) -> None:
    """Without checkpointing N passes; checkpointed by window its fast weights alone, whatever N."""

    def added(passes: int, checkpoint: Checkpoint) -> int:
        return counted(step, 4, passes, checkpoint) - counted(step, 3, passes, checkpoint)

    # Two heads for two texts; and the tokens, which are integers of eight bytes.
    fast_weights, tokens = 4 * 2 * 2 * (3 * 5), 8 * 2 * 8
    assert fast_weights <= added(1, "window") <= fast_weights + 3 * tokens
    assert added(1, "window") == added(3, "window")
    assert added(1, "pass") < added(3, "pass")
    assert added(3, "none") > 2 * added(1, "none")


# -- the benchmark


def invented(step: Step) -> float:
    """Bytes that grow with windows and passes, but not under "window"."""
    runs = step.windows * step.passes
    return 2**20 * {"none": 100.0 * runs, "pass": 100.0 + 10 * runs, "window": 100.0 + step.windows}[step.checkpoint]


@pytest.fixture
def invented_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "peak_bytes", invented)
    monkeypatch.setattr(memory, "alternate", one_round)


@pytest.mark.usefixtures("invented_memory")
def test_the_headline_is_the_most_under_the_best_checkpointing(step: Step) -> None:
    parts = Parts()
    findings = measure(PEAK, parts, step, windows=(1, 2, 4), passes=(1, 2), timed=(2, 2))
    parts.assert_whole()
    assert findings.ratio == pytest.approx((100 + 4) / 100)
    assert findings.better == "lower"
    assert findings.reached
    rows, times = findings.details.tables.values()
    assert [(row["windows"], row["N"]) for row in rows] == [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2)]
    assert rows[3] == {"windows": 2, "N": 2, "none_MiB": 400.0, "pass_MiB": 140.0, "window_MiB": 102.0}
    assert [(row["checkpoint"], row["windows"], row["N"]) for row in times] == [(kind, 2, 2) for kind in CHECKPOINTS]
    assert times[0]["over_none"] == 1.0
    assert "The headline is the most under window, over none" in findings.details.notes[-1]


def test_every_kind_of_checkpointing_is_right(step: Step) -> None:
    memory.check_gradients(step.but(3, 3, "none"))


@pytest.mark.parametrize("kind", ["pass", "window"])
@pytest.mark.parametrize("wrong", [1 + 1e-4, float("nan")])
def test_a_wrong_gradient_is_not_measured(
    step: Step, monkeypatch: pytest.MonkeyPatch, kind: Checkpoint, wrong: float
) -> None:
    right = Step.gradients

    def gradients(self: Step, model: HybridLM) -> None:
        right(self, model)
        parameter: Any = list(model.parameters())[-1]
        if self.checkpoint == kind:
            parameter.grad *= wrong

    monkeypatch.setattr(Step, "gradients", gradients)
    monkeypatch.setattr(memory, "peak_bytes", never)
    monkeypatch.setattr(memory, "alternate", never)
    with pytest.raises(UserError, match=f'^nothing is measured: under activation_checkpoint "{kind}", the gradient of'):
        measure(PEAK, Parts(), step)
