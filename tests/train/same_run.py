"""Runs that break off, and runs compared to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reverie.results.card import RunCard, load_card
from reverie.results.checkpoint import FILE_NAME, Progress, load_checkpoint
from reverie.results.run import CARD_NAME


class Killed(Exception):
    """The process ends here."""


def kill_at(step: int) -> Callable[[Progress, float], None]:
    def report(progress: Progress, loss: float) -> None:
        if progress.step == step:
            raise Killed

    return report


def without_times(point: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in point.items() if key != "wall_time_s"}


def assert_same_run(out: Path, other: Path, *, but: str = "") -> None:
    """Weights, optimiser states, random state, curve and card, to the last bit; wall times aside."""
    ours, theirs = (load_checkpoint(folder / FILE_NAME) for folder in (out, other))
    assert ours.recipe == theirs.recipe
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name in ours.tensors.keys() - {but}:
        assert torch.equal(ours.tensors[name], theirs.tensors[name]), name
    ours, theirs = (without_times(vars(checkpoint.progress)) for checkpoint in (ours, theirs))
    ours["curve"], theirs["curve"] = (list(map(without_times, part["curve"])) for part in (ours, theirs))
    assert ours == theirs
    volatile = {"wall_time_s": True, "date": True, "commit": True, "curve": {"__all__": {"wall_time_s"}}}
    ours, theirs = (read_run_card(folder).model_dump(exclude=volatile) for folder in (out, other))
    assert ours == theirs


def read_run_card(out: Path) -> RunCard:
    card = load_card(out / CARD_NAME)
    assert isinstance(card, RunCard)
    return card


def assert_close(ours: Any, theirs: Any, *, rough: bool = False) -> None:
    """Numbers in dicts and lists, to the rounding of float32, or of bfloat16."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_close(ours[key], theirs[key], rough=rough)
    elif isinstance(ours, list):
        for our, their in zip(ours, theirs, strict=True):
            assert_close(our, their, rough=rough)
    else:
        assert ours == (theirs and pytest.approx(theirs, rel=0.1 if rough else 2e-3, abs=1e-6))
