"""The sides of `reverie bench train`: models of the same sizes, with the same data and optimisers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.bench.check import SEED
from reverie.bench.rivals import transformers_hybrids, transformers_logits
from reverie.model import HybridLM, new_model
from reverie.recipe import Recipe, load_recipe
from reverie.sleep import rollout
from reverie.tasks import Batch
from reverie.train.compiled import RECOMPILE_LIMIT, compile_blocks
from reverie.train.optim import build_optimizers, set_lr
from reverie.train.step import train_step

OURS = "reverie"
VOCAB = 64
WINDOW = 24
PERIOD = 8
CURVE_STEPS = 100
CURVE_OPTIM = {"muon_lr": 3e-2, "adamw_lr": 1e-2, "warmup_steps": 10}  # good for all the models in so few steps

Dtype = Literal["float32", "bfloat16"]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")


class Shape(NamedTuple):
    """A model, a batch and a text."""

    name: str
    recipe: str
    batch_size: int
    rule110: bool = False  # four windows, then four labels; else one window with a label everywhere


SHAPES = (
    Shape("d 64, one window", "depo/nano", 128),
    Shape("d 256, one window", "rule110/base", 64),
    Shape("d 256, Rule 110", "rule110/base", 64, rule110=True),
)


def recipe_of(shape: Shape, dtype: Dtype) -> Recipe:
    """N = 1; unless the text is Rule 110's, with a vocabulary, a window and learning rates of our own."""
    recipe = load_recipe(shape.recipe, [f"train.dtype={dtype}", f"train.batch_size={shape.batch_size}"])
    if shape.rule110:
        return recipe
    return recipe.model_copy(
        update={
            "model": recipe.hybrid.model_copy(update={"vocab_size": VOCAB}),
            "sleep": recipe.sleep.model_copy(update={"window_size": WINDOW}),
            "optim": recipe.optim.model_copy(update=CURVE_OPTIM),
            "train": recipe.train.model_copy(update={"steps": CURVE_STEPS}),
        }
    )


def batch_of(shape: Shape, recipe: Recipe, step: int) -> Batch:
    """Rule 110, or random strings of 8 symbols three times over with the next symbol as label of every position."""
    if shape.rule110:
        return recipe.task.batch("train", SEED, step, range(shape.batch_size))
    random = torch.Generator().manual_seed(step)
    period = torch.randint(VOCAB, (shape.batch_size, PERIOD), generator=random)
    text = period.repeat(1, WINDOW // PERIOD + 1)[:, : WINDOW + 1]
    everywhere = torch.ones(shape.batch_size, WINDOW, dtype=torch.bool)
    return Batch(text[:, :-1].contiguous(), text[:, 1:].contiguous(), everywhere, everywhere.long(), everywhere.long())


class Side(NamedTuple):
    """One model in one number format."""

    recipe: Recipe
    model: nn.Module
    train: Callable[[Batch, int], float]  # one step with this index, to the loss
    backward: Callable[[Batch], None]  # forward and backward alone

    def compile(self) -> None:
        """Ours block by block, as `train.compile` does; another one whole. Raises UserError without a C++ compiler."""
        if isinstance(self.model, HybridLM):
            compile_blocks(self.model)
        else:
            torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
            self.model.compile(dynamic=False)


def sides(shape: Shape, dtype: Dtype) -> dict[str, Side]:
    """Ours first; all with the same optimisers."""
    recipe = recipe_of(shape, dtype)
    our_model = new_model(recipe.hybrid, SEED)
    optimizers = build_optimizers(our_model, recipe.optim)

    def train_ours(batch: Batch, step: int) -> float:
        return train_step(recipe, our_model, optimizers, step, batch).loss

    def our_logits(batch: Batch) -> Tensor:
        return rollout(our_model, batch.tokens, batch.loss_mask, recipe.sleep)[0]

    everyone = {OURS: Side(recipe, our_model, train_ours, partial(_backward, our_model, our_logits, dtype))}
    for name, model in transformers_hybrids(recipe.hybrid, SEED).items():
        everyone[name] = _rival(recipe, model, dtype)
    return everyone


def _rival(recipe: Recipe, model: nn.Module, dtype: Dtype) -> Side:
    """What `train_step` does, around a model of transformers."""
    optimizers = build_optimizers(model, recipe.optim)

    def logits(batch: Batch) -> Tensor:
        return transformers_logits(model, batch.tokens, batch.loss_mask, recipe.sleep.window_size)

    def train(batch: Batch, step: int) -> float:
        loss = _loss(logits, batch, dtype)
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        nn.utils.clip_grads_with_norm_(model.parameters(), recipe.optim.grad_clip, norm)
        set_lr(optimizers, recipe.optim, step, recipe.train.steps)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    return Side(recipe, model, train, partial(_backward, model, logits, dtype))


def _loss(logits: Callable[[Batch], Tensor], batch: Batch, dtype: Dtype) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        scores = logits(batch)
    return F.cross_entropy(scores.float(), batch.targets[batch.loss_mask])


def _backward(model: nn.Module, logits: Callable[[Batch], Tensor], dtype: Dtype, batch: Batch) -> None:
    _loss(logits, batch, dtype).backward()
    model.zero_grad()
