"""The paper-size recipes run: real model, task and windows, a batch of one, a step or two.

Those of GSM-Infinite would take minutes a step here, so they run with two blocks, short prompts and small windows.
"""

from __future__ import annotations

import math

import pytest

from reverie.errors import UserError
from reverie.model import new_model
from reverie.pretrained.smollm2 import load_smollm2
from reverie.recipe import load_recipe
from reverie.results.evaluate import evaluate
from reverie.train.data import make_batch
from reverie.train.optim import build_optimizers
from reverie.train.schedule import Schedule
from reverie.train.step import take_step

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "tokens", "steps", "passes"),
    [("rule110/paper-t32", 100, 2, 2), ("rule110/paper-depth", 100, 2, 2), ("depo/paper", 360, 1, 1)],
)
def test_a_paper_recipe_trains(name: str, tokens: int, steps: int, passes: int) -> None:
    recipe = load_recipe(name, ["train.batch_size=1", f"sleep.num_sleep_passes={passes}"])
    assert recipe.task.sequence_length == tokens
    model = new_model(recipe.hybrid, recipe.train.seed)
    optimizers = build_optimizers(model, recipe.optim)
    losses = [
        take_step(Schedule.of(recipe), model, optimizers, step, make_batch(recipe.task, recipe.train, step)).loss
        for step in range(steps)
    ]
    # The head starts at zero, so the first loss is that of a uniform guess.
    assert losses[0] == pytest.approx(math.log(recipe.task.vocab_size), abs=1e-4)
    assert model.lm_head.weight.abs().max() > 0
    assert evaluate(model, recipe.task, recipe.sleep, 1).score.examples == 1


@pytest.mark.parametrize(("name", "window_size"), [("gsm_infinite/paper", 250), ("gsm_infinite/paper-sliding", 64)])
def test_a_paper_recipe_of_word_problems_trains(name: str, window_size: int) -> None:
    try:
        load_smollm2()
    except UserError as error:
        pytest.skip(str(error))
    shipped = load_recipe(name)
    assert shipped.task.sequence_length == 3300 + 5  # a space and four digits
    assert (shipped.train.batch_size, shipped.train.eval_examples) == (256, 1600)
    small = [
        "task.length=[300, 400]",
        f"sleep.window_size={window_size}",
        'model.layers=["attn", "jet"]',
        "model.width=144",
    ]
    recipe = load_recipe(name, [*small, "train.batch_size=1", "sleep.num_sleep_passes=2", "train.steps=3"])
    model = new_model(recipe.hybrid, recipe.train.seed)
    optimizers = build_optimizers(model, recipe.optim)
    losses = [
        take_step(Schedule.of(recipe), model, optimizers, step, make_batch(recipe.task, recipe.train, step)).loss
        for step in range(3)
    ]
    assert losses[0] == pytest.approx(math.log(49152), abs=1e-4)
    assert model.lm_head.weight.abs().max() > 0
    score = evaluate(model, recipe.task, recipe.sleep, 2, generate=True).score
    assert (score.examples, set(score.by_depth)) == (2, {1, 2})
