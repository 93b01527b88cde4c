"""The sides of `reverie bench train`: models of the same sizes, with the same data and optimisers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.bench.check import SEED
from reverie.bench.rivals import transformers_hybrids
from reverie.model import new_model
from reverie.recipe import OptimizerConfig, Recipe, load_recipe
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
CURVE_OPTIM = {  # good for all the models in so few steps
    "matrices": OptimizerConfig(name="muon", lr=3e-2),
    "rest": OptimizerConfig(name="adamw", lr=1e-2),
    "warmup_steps": 10,
}


class Shape(NamedTuple):
    """A recipe's model and a batch of one window."""

    name: str
    recipe: str
    batch_size: int


SHAPES = (Shape("d 64, one window", "depo/nano", 128), Shape("d 256, one window", "rule110/base", 64))


def recipe_of(shape: Shape) -> Recipe:
    """N = 1, with a vocabulary, a window and learning rates of our own."""
    recipe = load_recipe(shape.recipe, [f"train.batch_size={shape.batch_size}"])
    return recipe.model_copy(
        update={
            "model": recipe.hybrid.model_copy(update={"vocab_size": VOCAB}),
            "sleep": recipe.sleep.model_copy(update={"window_size": WINDOW}),
            "optim": recipe.optim.model_copy(update=CURVE_OPTIM),
            "train": recipe.train.model_copy(update={"steps": CURVE_STEPS}),
        }
    )


def batch_of(shape: Shape, step: int) -> Batch:
    """Random strings of 8 symbols three times over, with the next symbol as label of every position."""
    random = torch.Generator().manual_seed(step)
    period = torch.randint(VOCAB, (shape.batch_size, PERIOD), generator=random)
    text = period.repeat(1, WINDOW // PERIOD + 1)[:, : WINDOW + 1]
    everywhere = torch.ones(shape.batch_size, WINDOW, dtype=torch.bool)
    return Batch(text[:, :-1].contiguous(), text[:, 1:].contiguous(), everywhere, everywhere.long(), everywhere.long())


@dataclass
class Side:
    """One model, trained as `take_step` does it; a model of transformers is compiled whole."""

    recipe: Recipe
    model: Any
    logits: Callable[[Batch], Tensor]  # [labels, vocab]

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
        return F.cross_entropy(self.logits(batch), batch.targets[batch.loss_mask])


class OurSide(Side):
    """Ours: `take_step` itself, compiled block by block as `train.compile` does."""

    def compile(self) -> None:
        compile_blocks(self.model)

    def train(self, batch: Batch, step: int) -> float:
        return take_step(Schedule.of(self.recipe), self.model, self.optimizers, step, batch).loss


def sides(shape: Shape) -> dict[str, Side]:
    """Ours first; all with the same optimisers."""
    recipe = recipe_of(shape)
    model = new_model(recipe.hybrid, SEED)

    def our_logits(batch: Batch) -> Tensor:
        return rollout(model, batch.tokens, batch.loss_mask, recipe.sleep)[0]

    def side_of(other: Any) -> Side:
        return Side(recipe, other, lambda batch: other(input_ids=batch.tokens, use_cache=False).logits.flatten(0, 1))

    others = {name: side_of(other) for name, other in transformers_hybrids(recipe.hybrid, SEED).items()}
    return {OURS: OurSide(recipe, model, our_logits), **others}
