"""`max_seconds`: training stops in time, saved, and goes on to the same curve. The clock here is ours."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from same_run import assert_same_run
from tiny_recipe import tiny_recipe

from reverie.interrupts import Stopped, exit_code
from reverie.results.checkpoint import FILE_NAME, load_checkpoint
from reverie.results.run import CARD_NAME
from reverie.train import run as module
from reverie.train import time_limit
from reverie.train.run import train
from reverie.train.step import EagerSteps
from reverie.train.time_limit import NEWEST, TimeLimit


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def spend(self, patch: pytest.MonkeyPatch, owner: Any, function: str, *seconds: float) -> None:
        """Let calls of a function take so long: the first one, the second one …, all others as long as the last."""
        original, durations = getattr(owner, function), list(seconds)

        def slow(*arguments: Any, **keywords: Any) -> Any:
            self.seconds += durations.pop(0) if len(durations) > 1 else durations[0]
            return original(*arguments, **keywords)

        patch.setattr(owner, function, slow)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time_limit, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    train(tiny_recipe(), out)
    return out


def test_without_a_limit_everything_is_allowed(clock: Clock):
    limit = TimeLimit()
    clock.seconds = 1e9
    assert limit.allows("step")


def test_what_comes_takes_as_long_as_the_longest_of_its_newest_ones(clock: Clock):
    limit = TimeLimit(100.0)

    def measure(seconds: float) -> None:
        clock.seconds = 0.0
        with limit.timing("step"):
            clock.seconds += seconds

    def allowed(at: float, *parts: str) -> bool:
        clock.seconds = at
        return limit.allows(*parts)

    measure(30.0)
    measure(5.0)
    assert allowed(69.9, "step", "never seen")
    assert not allowed(70.1, "step")
    assert not allowed(45.0, "step", "step")
    for _ in range(NEWEST - 1):
        measure(5.0)
    assert allowed(89.9, "step", "step")
    assert not allowed(90.1, "step", "step")


@pytest.mark.parametrize(
    ("seconds", "step"),
    [
        (21.5, 1),  # after 21 s; a checkpoint takes 1 s
        (22.5, 2),  # after 22 s; the first step took 20 s, but no other will
        (30.0, 3),  # evaluates for 10 s, which nobody could know
        (48.5, 5),  # after 37 s; the sixth step would evaluate again
        (58.5, 6),  # after 49 s; so would the card
    ],
)
def test_it_stops_before_a_step_that_would_be_late(
    seconds: float, step: int, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Path
):
    with monkeypatch.context() as patch:
        clock.spend(patch, EagerSteps, "take", 20.0, 1.0)
        clock.spend(patch, module, "save_run", 1.0)
        clock.spend(patch, module._Run, "_measure", 10.0)
        with pytest.raises(Stopped, match=rf"stopped after step {step} of 6 \(time is up\), saved") as stopped:
            train(tiny_recipe(), tmp_path, max_seconds=seconds)
    assert exit_code(stopped.value) == 0
    assert load_checkpoint(tmp_path / FILE_NAME).progress.step == step
    assert not (tmp_path / CARD_NAME).exists()
    train(tiny_recipe(), tmp_path, resume=True, max_seconds=1e6)
    assert_same_run(tmp_path, undisturbed)


def test_every_call_takes_a_step_and_the_one_after_the_last_writes_the_card(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Path
):
    clock.spend(monkeypatch, EagerSteps, "take", 50.0)
    clock.spend(monkeypatch, module._Run, "_measure", 50.0)
    for step in range(1, 7):
        with pytest.raises(Stopped, match=f"after step {step} of 6"):
            train(tiny_recipe(), tmp_path, resume=step > 1, max_seconds=10.0)
    assert not (tmp_path / CARD_NAME).exists()
    train(tiny_recipe(), tmp_path, resume=True, max_seconds=10.0)
    assert_same_run(tmp_path, undisturbed)
