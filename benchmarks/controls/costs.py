"""What a control costs: operations of matrix products, counted while it runs, and time on this machine."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from controls.cells import SLEEP, Cell, as_tested, build
from reverie.bench.count import count_flops
from reverie.errors import UserError
from reverie.files import write_atomic
from reverie.model import LanguageModel
from reverie.recipe import Recipe
from reverie.sleep import Context, consolidate, rollout, wake
from reverie.sleep.labels import labelled_windows
from reverie.tasks import Batch
from reverie.train.data import make_batch
from reverie.train.optim import build_optimizers
from reverie.train.schedule import Schedule
from reverie.train.step import take_step

ROUNDS = 15  # of timed steps


class Costs(NamedTuple):
    """Operations of one control."""

    step: int  # of training: forward, backward and optimiser
    reading: float  # of a text, asleep or not, before it is asked about
    answer: float  # awake


def costs(cell: Cell, recipe: Recipe) -> Costs:
    """The operations of a cell.

    Args:
        recipe: of the task, without a control: what it sleeps over is the text that is read.
    """
    return Costs(step_operations(cell), *_awake_operations(cell, recipe))


def step_operations(cell: Cell) -> int:
    """Operations of a training step. Of one that only tests another's model: as if it had been trained so."""
    return count_flops(_stepper(cell))


def _stepper(cell: Cell) -> Callable[[], object]:
    """A training step of a fresh model, with the making of its batch."""
    recipe = cell.recipe
    model: LanguageModel = build(cell.control, recipe.hybrid, recipe.train.seed)
    optimizers, schedule = build_optimizers(model, recipe.optim), Schedule.of(recipe)
    return lambda: take_step(schedule, model, optimizers, 0, make_batch(recipe.task, recipe.train, 0))


@torch.no_grad()
def _awake_operations(cell: Cell, recipe: Recipe) -> tuple[float, float]:
    """Operations of reading a text, and of an answer to a question about it."""
    own, batch = cell.recipe, Batch(*make_batch(cell.recipe.task, cell.recipe.train, 0, range(1)))
    begin = first_question(recipe)
    model = as_tested(cell.control, build(cell.control, own.hybrid, own.train.seed))
    text, asked = batch.tokens[:, :begin], batch.tokens[:, begin:]
    mask, empty = batch.loss_mask[:, begin:], Context.empty(model)
    if own.sleep.window_size < own.task.sequence_length:
        context = consolidate(model, text, empty, own.sleep)
        answers = count_flops(lambda: rollout(model, asked, mask, own.sleep, context=context))
        reading = count_flops(lambda: rollout(model, batch.tokens, batch.loss_mask, own.sleep)) - answers
    else:  # nothing is evicted: the text stays in the cache
        context = wake(model, text, empty, own.sleep)[1]
        reading = count_flops(lambda: wake(model, text, empty, own.sleep))
        answers = count_flops(lambda: model.head(wake(model, asked, context, own.sleep)[0][mask]))
    return reading, answers / (int(batch.question.max()) + 1)


def first_question(recipe: Recipe) -> int:
    """The first token of the first window in which a recipe's task asks."""
    batch, window = recipe.task.batch("test", 0, 0, range(1)), recipe.sleep.window_size
    return int(labelled_windows(batch.loss_mask, window)[0].nonzero()[0]) * window


def seconds_a_step(cells: dict[str, Cell], place: Path) -> dict[str, float]:
    """Seconds of the processor that a training step takes, by name of the control; noted in `place` the first time.

    Steps of all controls take turns, and the median counts, so that what else the machine does reaches all alike.
    """
    if place.exists():
        try:
            known = {name: float(json.loads(place.read_text())[name]) for name in cells}
            if all(0 < seconds < math.inf for seconds in known.values()):
                return known
            raise ValueError
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{place} does not hold the seconds of a step: delete it, and they are measured") from None
    steps, took = {name: _stepper(cell) for name, cell in cells.items()}, {name: list[float]() for name in cells}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            begun = time.process_time()
            step()
            took[name].append(time.process_time() - begun)
    found = {name: statistics.median(times[2:]) for name, times in took.items()}
    write_atomic(place, json.dumps(found).encode())
    return found


def more_steps(recipe: Recipe, place: Path, cell: Callable[[str], Cell], what: str) -> int:
    """Steps of N = 1 that take as much time, or as many operations, as the recipe's steps of N = 4.

    Args:
        place: where seconds are noted.
        cell: gives the cell of N = 1 or N = 4.
    """
    pair = {name: cell(name) for name in ("n1", SLEEP)}
    found = (
        seconds_a_step(pair, place) if what == "time" else {name: step_operations(one) for name, one in pair.items()}
    )
    return round(recipe.train.steps * found[SLEEP] / found["n1"])
