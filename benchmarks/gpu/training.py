"""The plan's runs: `reverie.train` with a deadline, from the checkpoint that an earlier call left.

The deadline comes as SIGTERM to the own process: training then finishes its step, saves, and raises `Stopped`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from ways import same_run

from reverie.errors import UserError
from reverie.files import write_atomic
from reverie.recipe import Recipe
from reverie.recipe.build import build_model
from reverie.results.card import RunCard, load_card
from reverie.results.checkpoint import (
    FILE_NAME,
    Progress,
    checkpoint_metadata,
    checkpoint_progress,
    checkpoint_recipe,
    load_checkpoint,
)
from reverie.results.run import CARD_NAME, make_card
from reverie.train.run import train
from reverie.train.worker import EVENT_INTERVAL_S, Event

OTHER_SETTINGS = "other settings than the plan's"


def train_until(
    recipe: Recipe, out: Path, device: torch.device, seconds: float, tell: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Train until the run is done or the time is up; returns the steps done by this call and their seconds.

    Raises:
        Stopped: the time is up; the run is saved.
    """
    going_on = (out / FILE_NAME).is_file()
    if going_on:
        adopt(out / FILE_NAME, recipe)
    first = last = 0.0

    def report(progress: Progress, loss: float) -> None:
        nonlocal first, last
        first = first or time.monotonic()
        if progress.step == recipe.train.steps or time.monotonic() - last > EVENT_INTERVAL_S:
            tell(asdict(Event.of(recipe, progress, loss)))
            last = time.monotonic()

    with alarm(seconds):
        card = train(recipe, out, resume=going_on, device=device, report=report)
    return {"steps": card.steps, "wall_time_s": card.wall_time_s, "peak_gib": _peak_gib(device)}


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """SIGTERM to this process when the time is up, unless the context has ended."""
    timer = threading.Timer(max(seconds, 0.0), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def adopt(path: Path, recipe: Recipe) -> None:
    """Let a checkpoint go on under a recipe that differs in the way alone: another machine may have other kernels.

    Raises UserError where it differs in more: then it is another run.
    """
    found = checkpoint_recipe(path)
    if found == recipe:
        return
    if not same_run(found, recipe):
        raise UserError(f"{path} was made by {OTHER_SETTINGS}: give another --state, or delete it")
    checkpoint = load_checkpoint(path)
    metadata = checkpoint_metadata(recipe, checkpoint.progress)
    write_atomic(path, partial(_save, checkpoint.tensors, metadata))


def finished(recipe: Recipe, out: Path) -> RunCard | None:
    """The card of this run, whatever the way in which it was computed.

    Raises UserError where the folder holds another run.
    """
    if not (out / CARD_NAME).is_file():
        return None
    card = load_card(out / CARD_NAME)
    if not isinstance(card, RunCard) or not same_run(Recipe.model_validate(card.recipe), recipe):
        raise UserError(f"{out} holds a run with {OTHER_SETTINGS}: give another --state, or delete it")
    return card


def card_so_far(out: Path) -> RunCard | None:
    """Of a run that is not done, with the newest point of its curve as its score; None before the first point."""
    path = out / FILE_NAME
    if not path.is_file():
        return None
    recipe, progress = checkpoint_recipe(path), checkpoint_progress(path)
    if not progress.curve:
        return None
    with torch.device("meta"):
        model = build_model(recipe.model, recipe.train.seed)
    newest: Any = _Newest(progress.curve[-1]["score"])
    return make_card(recipe, model, progress, newest, "unfinished")


class _Newest:
    """A score that is known by its summary alone."""

    def __init__(self, summary: dict[str, Any]) -> None:
        self._summary = summary

    def summary(self) -> dict[str, Any]:
        return self._summary


def _save(tensors: dict[str, torch.Tensor], metadata: dict[str, str], path: Path) -> None:
    save_file(tensors, path, metadata=metadata)


def _peak_gib(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
