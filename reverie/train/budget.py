"""How much of an adapter's recipe fits into a time: steps, and pages, by what both cost on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from reverie.errors import UserError
from reverie.hf.frozen import Beginning
from reverie.recipe import Recipe, changed
from reverie.recipe.build import build_model
from reverie.results.checkpoint import checkpoint_recipe, find_checkpoint
from reverie.results.evaluate import evaluate
from reverie.train.adapt import Adaptation
from reverie.train.distributed import ALONE, ParallelModel

CHOSEN: tuple[str, ...] = ("train.steps", "train.eval_every", "adapt.pool")
"""Settings that a time decides."""
_EVALUATIONS = 5  # before the last one
_SPARE = 0.1  # share of the time that is not planned with
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Costs:
    """Seconds that parts of a run take."""

    beginning: float  # before the first step, when all that it reads is cached
    page: float  # the frozen beginning of a page and its questions
    address: float  # a step that learns addresses alone
    step: float  # any other
    evaluation: float
    finish: float  # the last evaluation, of the whole model

    def of(self, recipe: Recipe, chosen: dict[str, int]) -> float:
        """Seconds of a run with these steps and pages whose first pages are cached."""
        assert recipe.adapt is not None
        known = recipe.adapt.start.pages if recipe.adapt.start else 0
        alone = recipe.adapt.loss.address_alone
        steps = chosen["train.steps"] * (alone * self.address + (1 - alone) * self.step)
        evaluations = math.ceil(chosen["train.steps"] / chosen["train.eval_every"]) * self.evaluation
        return self.beginning + max(chosen["adapt.pool"] - known, 0) * self.page + steps + evaluations + self.finish


def measured(recipe: Recipe, device: torch.device | str = "cpu") -> Costs:
    """What a run costs here, with one process; leaves its first pages, and what it is tested on, in the cache."""
    recipe = changed(recipe, train={"data_workers": 0})  # one that computed pages meanwhile would slow down the steps
    model, seconds = _timed(lambda: _model(recipe))
    parallel = ParallelModel(model, device)
    _, finish = _timed(lambda: evaluate(model, recipe.task, recipe.sleep, 1, generate=True, device=device))
    adaptation = Adaptation(recipe, model, ALONE)
    page = adaptation.task.pages("train", recipe.train.seed, 0, range(1))[0]
    uncached = Beginning(model, adaptation.first, products=adaptation.pool.beginning.products)
    _, page_seconds = _timed(lambda: uncached.states(adaptation.pool.texts(page)))
    adaptation.start()
    _, start = _timed(adaptation.start)  # from the cache by now
    plan = adaptation.plan(0)

    def step(number: int) -> Callable[[], float]:
        return lambda: parallel.backward(adaptation.loss_of(number, plan, range(len(plan.pages))))

    with adaptation.plans(0, lambda _: recipe.task.depths()[-1]):
        costs = [_timed(step(number))[1] for number in (0, 0, recipe.train.steps - 1, recipe.train.steps - 1)]
    adaptation.evaluate()
    _, evaluation = _timed(adaptation.evaluate)
    return Costs(seconds + start, page_seconds, costs[1], costs[3], evaluation, finish * recipe.train.eval_examples)


def _model(recipe: Recipe) -> Any:
    return build_model(recipe.model, recipe.train.seed)


def fitted(recipe: Recipe, seconds: float, costs: Costs) -> dict[str, int]:
    """The largest share of the recipe's steps, and of its pages, that fits into the time; a thousandth at least."""
    assert recipe.adapt is not None
    steps, pool = recipe.train.steps, recipe.adapt.pool
    found = dict[str, int]()
    for share in range(1, 1001):
        few = max(steps * share // 1000, 1)
        numbers = few, math.ceil(few / _EVALUATIONS), max(pool * share // 1000, 1)
        chosen: dict[str, int] = dict(zip(CHOSEN, numbers, strict=True))
        if found and costs.of(recipe, chosen) > (1 - _SPARE) * seconds:
            break
        found = chosen
    return found


def chosen_before(out: Path) -> dict[str, int]:
    """What was chosen for the run in a folder; nothing if there is none."""
    place = find_checkpoint(out)
    if place is None or place.is_dir():
        return {}
    recipe = checkpoint_recipe(place)
    if recipe.adapt is None:
        raise UserError(f"{out} holds a run of another kind, and no adapter")
    return dict(zip(CHOSEN, (recipe.train.steps, recipe.train.eval_every, recipe.adapt.pool), strict=True))


def _timed(function: Callable[[], _Result]) -> tuple[_Result, float]:
    begun = time.monotonic()
    return function(), time.monotonic() - begun
