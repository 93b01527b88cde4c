"""One training run as a process of its own: `python -m reverie.train.worker JOB.json`; events as JSON lines on stdout.

A process a run, with one thread each, is the fastest way to train several small models on a few cores.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ValidationError

from reverie.errors import UserError
from reverie.interrupts import exit_code, sigterm_interrupts
from reverie.recipe import Recipe
from reverie.results.card import RunCard, load_card
from reverie.results.checkpoint import FILE_NAME, Progress, checkpoint_recipe, find_checkpoint
from reverie.results.run import CARD_NAME
from reverie.train.run import train

EVENT_INTERVAL_S = 0.3


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
        if (out / FILE_NAME).is_file() and checkpoint_recipe(out / FILE_NAME) != recipe:
            raise other
        return None
    card = load_card(out / CARD_NAME)
    try:
        same = isinstance(card, RunCard) and Recipe.model_validate(card.recipe) == recipe
    except ValidationError:  # a recipe of another version
        same = False
    if not isinstance(card, RunCard) or not same:
        raise other
    return card


def run_job(path: Path) -> None:
    """Train by a job file, {"recipe": …, "out": …} and perhaps a "device", from the run's checkpoint if it has one."""
    job = json.loads(path.read_text(encoding="utf-8"))
    recipe, out = Recipe.model_validate(job["recipe"]), Path(job["out"])
    last = 0.0

    def report(progress: Progress, loss: float) -> None:
        nonlocal last
        if progress.step == recipe.train.steps or time.monotonic() - last > EVENT_INTERVAL_S:
            print(json.dumps(asdict(Event.of(recipe, progress, loss))), flush=True)
            last = time.monotonic()

    train(recipe, out, resume=find_checkpoint(out) is not None, device=job.get("device", "cpu"), report=report)


def main() -> None:
    try:
        with sigterm_interrupts():
            run_job(Path(sys.argv[1]))
    except UserError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        sys.exit(2)
    except KeyboardInterrupt as interruption:
        print(str(interruption) or "interrupted", file=sys.stderr)
        sys.exit(exit_code(interruption))


if __name__ == "__main__":
    main()
