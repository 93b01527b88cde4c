"""The sides of the training benchmark do the same work on the same data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reverie.bench import sides as bench_sides
from reverie.bench.check import SEED
from reverie.bench.sides import OURS, PERIOD, SHAPES, Dtype, Shape, batch_of, recipe_of, sides
from reverie.model import new_model
from reverie.sleep import rollout

TINY = Shape("tiny", "depo/nano", 2)
TINY_RULE110 = Shape("tiny, Rule 110", "rule110/nano", 2, rule110=True)


@pytest.mark.parametrize("shape", [TINY, TINY_RULE110], ids=lambda shape: shape.name)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_sides_do_the_same_step(monkeypatch: pytest.MonkeyPatch, shape: Shape, dtype: Dtype) -> None:
    """The step around transformers' models, put around ours, is ours: loss, clipping, learning rates and optimisers."""
    recipe = recipe_of(shape, dtype)
    model = new_model(recipe.hybrid, SEED)

    def our_logits(model: Any, tokens: Tensor, loss_mask: Tensor, window_size: int) -> Tensor:
        return rollout(model, tokens, loss_mask, recipe.sleep)[0]

    monkeypatch.setattr(bench_sides, "transformers_hybrids", lambda config, seed: {"same": model})
    monkeypatch.setattr(bench_sides, "transformers_logits", our_logits)
    everyone = sides(shape, dtype)
    for step in range(3):
        losses = [side.train(batch_of(shape, recipe, step), step) for side in everyone.values()]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for ours, theirs in zip(everyone[OURS].model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_forward_and_backward_leave_no_gradients() -> None:
    for side in sides(TINY, "float32").values():
        side.backward(batch_of(TINY, side.recipe, 0))
        assert all(p.grad is None for p in side.model.parameters())


def test_recipes_differ_in_nothing_but_size() -> None:
    for shape in SHAPES:
        recipe = recipe_of(shape, "float32")
        assert recipe.sleep.num_sleep_passes == 1
        assert len(recipe.hybrid.layers) == 4
        assert recipe.hybrid.width == int(shape.name.split(",")[0].removeprefix("d "))
        assert recipe.train.batch_size == shape.batch_size
        assert recipe.train.backward.activation_checkpoint == "none"


def test_a_text_asks_for_every_next_symbol() -> None:
    recipe = recipe_of(TINY, "float32")
    batch = batch_of(TINY, recipe, 7)
    assert batch.loss_mask.all()
    assert torch.equal(batch.targets[:, :-1], batch.tokens[:, 1:])
    assert torch.equal(batch.tokens[:, PERIOD:], batch.tokens[:, :-PERIOD])
    assert torch.equal(batch.tokens, batch_of(TINY, recipe, 7).tokens)
    assert not torch.equal(batch.tokens, batch_of(TINY, recipe, 8).tokens)


def test_rule_110_has_its_labels_after_four_windows() -> None:
    shape = SHAPES[-1]
    recipe = recipe_of(shape, "float32")
    batch = batch_of(shape, recipe, 0)
    windows = batch.loss_mask.split(recipe.sleep.window_size, dim=1)
    assert [int(window.sum()) for window in windows] == [0, 0, 0, 0, 4 * shape.batch_size]
