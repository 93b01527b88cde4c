"""The paper-size recipes run: real model, task and windows, a batch of one, a step or two."""

from __future__ import annotations

import math

import pytest

from reverie.evaluate import evaluate
from reverie.model import new_model
from reverie.recipe import load_recipe
from reverie.train.batches import make_batch
from reverie.train.loop import train_step
from reverie.train.optim import build_optimizers


@pytest.mark.parametrize(
    ("name", "tokens", "steps"),
    [("rule110/paper-t32", 100, 2), ("rule110/paper-depth", 100, 2), ("depo/paper", 360, 1)],
)
def test_a_paper_recipe_trains(name: str, tokens: int, steps: int) -> None:
    recipe = load_recipe(name, ["train.batch_size=1", "sleep.num_sleep_passes=2"])
    assert recipe.task.sequence_length == tokens
    model = new_model(recipe.model, recipe.train.seed)
    optimizers = build_optimizers(model, recipe.optim)
    losses = [train_step(recipe, model, optimizers, step, make_batch(recipe, step)) for step in range(steps)]
    # The head starts at zero, so the first loss is that of a uniform guess.
    assert losses[0] == pytest.approx(math.log(recipe.task.vocab_size), abs=1e-4)
    assert model.lm_head.weight.abs().max() > 0
    assert evaluate(model, recipe.task, recipe.sleep, 1).examples == 1
