"""The sides of `reverie bench train`: models of the same sizes, with the same data and optimisers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.bench.check import SEED
from reverie.bench.rivals import transformers_hybrids, transformers_logits
from reverie.model import new_model
from reverie.recipe import Recipe, load_recipe
from reverie.sleep import rollout
from reverie.tasks import Batch
from reverie.train.compiled import RECOMPILE_LIMIT, compile_blocks
from reverie.train.optim import build_optimizers, set_lr
from reverie.train.schedule import Schedule
from reverie.train.step import take_step

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


@dataclass
class Side:
    """One model in one number format, trained as `take_step` does it; a model of transformers is compiled whole."""

    recipe: Recipe
    model: Any
    logits: Callable[[Batch], Tensor]  # of the labelled positions

    def __post_init__(self) -> None:
        self.optimizers = build_optimizers(self.model, self.recipe.optim)

    def compile(self) -> None:
        """Raises UserError without a C++ compiler."""
        torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
        self.model.compile(dynamic=False)

    def backward(self, batch: Batch) -> None:
        """Forward and backward alone."""
        self._loss(batch).backward()
        self.model.zero_grad()

    def train(self, batch: Batch, step: int) -> float:
        """One training step with this index; returns the loss."""
        loss = self._loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optim.grad_clip)
        set_lr(self.optimizers, self.recipe.optim, step, self.recipe.train.steps)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    def _loss(self, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.train.dtype == "bfloat16"):
            scores = self.logits(batch)
        return F.cross_entropy(scores.float(), batch.targets[batch.loss_mask])


class OurSide(Side):
    """Ours: `take_step` itself, compiled block by block as `train.compile` does."""

    def compile(self) -> None:
        compile_blocks(self.model)

    def train(self, batch: Batch, step: int) -> float:
        return take_step(Schedule.of(self.recipe), self.model, self.optimizers, step, batch).loss


def sides(shape: Shape, dtype: Dtype) -> dict[str, Side]:
    """Ours first; all with the same optimisers."""
    recipe = recipe_of(shape, dtype)
    model = new_model(recipe.hybrid, SEED)

    def our_logits(batch: Batch) -> Tensor:
        return rollout(model, batch.tokens, batch.loss_mask, recipe.sleep)[0]

    def logits_of(other: nn.Module, batch: Batch) -> Tensor:
        return transformers_logits(other, batch.tokens, batch.loss_mask, recipe.sleep.window_size)

    others = transformers_hybrids(recipe.hybrid, SEED).items()
    everyone: dict[str, Side] = {OURS: OurSide(recipe, model, our_logits)}
    return everyone | {name: Side(recipe, other, partial(logits_of, other)) for name, other in others}
