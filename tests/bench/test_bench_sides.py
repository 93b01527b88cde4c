"""The sides of the training benchmark do the same work on the same data."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reverie.bench import sides as bench_sides
from reverie.bench.check import SEED
from reverie.bench.sides import OURS, PERIOD, SHAPES, Shape, batch_of, recipe_of, sides
from reverie.model import new_model

TINY = Shape("tiny", "depo/nano", 2)


def test_both_sides_do_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step around transformers' models, put around ours, is ours: loss, clipping, learning rates and optimisers."""
    recipe = recipe_of(TINY)
    model = new_model(recipe.hybrid, SEED)

    class LikeTransformers(nn.Module):
        """Our model, called as theirs is."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
            return SimpleNamespace(logits=self.model(input_ids))

    monkeypatch.setattr(bench_sides, "transformers_hybrids", lambda config, seed: {"same": LikeTransformers()})
    everyone = sides(TINY)
    for step in range(3):
        losses = [side.train(batch_of(TINY, step), step) for side in everyone.values()]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for ours, theirs in zip(everyone[OURS].model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_forward_and_backward_leave_no_gradients() -> None:
    for side in sides(TINY).values():
        side.backward(batch_of(TINY, 0))
        assert all(p.grad is None for p in side.model.parameters())


def test_recipes_differ_in_nothing_but_size() -> None:
    for shape in SHAPES:
        recipe = recipe_of(shape)
        assert recipe.sleep.num_sleep_passes == 1
        assert len(recipe.hybrid.layers) == 4
        assert recipe.hybrid.width == int(shape.name.split(",")[0].removeprefix("d "))
        assert recipe.train.batch_size == shape.batch_size
        assert recipe.train.backward.activation_checkpoint == "none"


def test_a_text_asks_for_every_next_symbol() -> None:
    batch = batch_of(TINY, 7)
    assert batch.loss_mask.all()
    assert torch.equal(batch.targets[:, :-1], batch.tokens[:, 1:])
    assert torch.equal(batch.tokens[:, PERIOD:], batch.tokens[:, :-PERIOD])
    assert torch.equal(batch.tokens, batch_of(TINY, 7).tokens)
    assert not torch.equal(batch.tokens, batch_of(TINY, 8).tokens)
