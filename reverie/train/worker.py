"""One training run as a process of its own, which tells how far it is.

A process a run, with one thread each, is the fastest way to train several small models on a few cores.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from pydantic import ValidationError

from reverie.errors import UserError
from reverie.interrupts import exit_code, sigterm_interrupts
from reverie.recipe import Recipe, recipe_again
from reverie.results.card import RunCard, load_card
from reverie.results.checkpoint import FILE_NAME, Progress, checkpoint_recipe, find_checkpoint
from reverie.results.run import CARD_NAME
from reverie.train.run import train

EVENT_INTERVAL_S = 0.3
CONTEXT = get_context("spawn")  # a fresh interpreter each time


@dataclass(frozen=True)
class Event:
    """The progress of a run, as its process reports it."""

    step: int
    steps: int
    tokens: int
    wall_time_s: float
    loss: float
    accuracy: float | None  # per question, at the newest evaluation

    @classmethod
    def of(cls, recipe: Recipe, progress: Progress, loss: float) -> Event:
        accuracy = progress.curve[-1]["score"]["question_accuracy"] if progress.curve else None
        return cls(progress.step, recipe.train.steps, progress.tokens, progress.wall_time_s, loss, accuracy)


def finished(recipe: Recipe, out: Path) -> RunCard | None:
    """The card of this very run, where it stands complete in `out`.

    Raises:
        UserError: `out` holds a run of another recipe, finished or not.
    """
    other = UserError(f"{out} holds a run with other settings: choose another folder, or delete it")
    if not (out / CARD_NAME).is_file():
        if (out / FILE_NAME).is_file() and not recipe.same_curve(checkpoint_recipe(out / FILE_NAME)):
            raise other
        return None
    card = load_card(out / CARD_NAME)
    try:
        same = isinstance(card, RunCard) and recipe.same_curve(recipe_again(card.recipe))
    except ValidationError:  # a recipe of another version
        same = False
    if not isinstance(card, RunCard) or not same:
        raise other
    return card


@contextlib.contextmanager
def child(
    recipe: Recipe, out: Path, device: str = "cpu", interval_s: float = EVENT_INTERVAL_S
) -> Iterator[tuple[BaseProcess, Connection]]:
    """A process that runs `work`, and what it sends, until EOFError; it is waited for at the end of the context."""
    # PASSIVE: spinning threads of two runs would slow each other down several times
    ours = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    before = {key: os.environ.get(key) for key in ours}
    os.environ.update(ours)
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=work, args=(recipe, out, device, sender, interval_s))
    process.start()
    for key, value in before.items():
        del os.environ[key]
        if value is not None:
            os.environ[key] = value
    sender.close()
    try:
        yield process, receiver
    finally:
        process.join()


def work(recipe: Recipe, out: Path, device: str, events: Connection, interval_s: float) -> None:
    """Train, from the run's checkpoint if it has one, and send an `Event` each `interval_s`, and at the last step.

    Sends a sentence if it fails. Prints nothing, whatever libraries have to say.
    """
    torch.set_num_threads(1)
    last = 0.0

    def report(progress: Progress, loss: float) -> None:
        nonlocal last
        if progress.step == recipe.train.steps or time.monotonic() - last > interval_s:
            events.send(Event.of(recipe, progress, loss))
            last = time.monotonic()

    printed = io.StringIO()
    try:
        with sigterm_interrupts(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            train(recipe, out, resume=find_checkpoint(out) is not None, device=device, report=report)
    except KeyboardInterrupt as interruption:
        sys.exit(exit_code(interruption))
    except Exception as error:
        died = f"its process ended ({type(error).__name__}: {error})"
        events.send(str(error) if isinstance(error, UserError) else died)
        sys.exit(2)
