"""The batches of training, step by step: made when they are asked for, or ahead of time by worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.context import BaseContext

import numpy as np
import torch
import torch.distributed as dist

from reverie.recipe import Recipe
from reverie.tasks import Batch
from reverie.workers import made_ahead

KILLED = (
    "a process that makes the data has ended by itself, perhaps because memory ran out: the last checkpoint can be "
    "resumed"
)


def make_batch(recipe: Recipe, step: int, examples: range | None = None, deepest: int | None = None) -> Batch:
    """The batch of a step (0 is the first), or some of its examples; it depends on the recipe and the step alone.

    Args:
        deepest: question asked; that of the recipe's schedule if None.
    """
    config = recipe.train
    examples = range(config.batch_size) if examples is None else examples
    deepest = max_depth(recipe, step) if deepest is None else deepest
    return recipe.task.batch("train", config.seed, step, examples, max_depth=deepest)


def max_depth(recipe: Recipe, step: int) -> int:
    """The deepest question of a step: from the shallowest depth to the deepest in equal stretches of the curriculum.

    It depends on the step alone, so every model and every number of passes sees the same data in the same order.
    """
    depths = recipe.task.depths()
    share = recipe.train.depth_curriculum
    if share == 0:
        return depths[-1]
    return depths[min(int(step / (share * recipe.train.steps) * len(depths)), len(depths) - 1)]


@contextmanager
def batches(
    recipe: Recipe, first_step: int, examples: range | None = None, deepest: Callable[[int], int] | None = None
) -> Iterator[Iterator[Batch]]:
    """The batches of all steps from `first_step` on, or these examples of each, in order, whoever makes them.

    With `train.data_workers` it is that many processes, which end with the context. Without, a batch is made when it is
    asked for, with questions as deep as `deepest`, if there is one, then says.

    Raises:
        UserError: such a process was killed.
    """
    steps, workers = range(first_step, recipe.train.steps), recipe.train.data_workers
    deepest = deepest or partial(max_depth, recipe)
    if not workers:
        yield (make_batch(recipe, step, examples, deepest(step)) for step in steps)
        return
    # Not PyTorch's DataLoader: a worker that dies makes it raise one of several errors, from a signal handler, wherever
    # the main thread is just then.
    with made_ahead(partial(_arrays, recipe, examples), steps, workers, if_killed=KILLED, context=_context()) as made:
        yield (Batch(*map(torch.from_numpy, arrays)) for arrays in made)


def _arrays(recipe: Recipe, examples: range | None, step: int) -> list[np.ndarray]:
    """The batch as it goes through a pipe: tensors would go by open files in shared memory, and both can run out."""
    return [tensor.numpy() for tensor in make_batch(recipe, step, examples)]


def _context() -> BaseContext:
    """Processes start as they do on this platform, but none is forked from one with CUDA's threads and memory, or with
    those by which it talks to other processes."""
    return get_context("spawn" if torch.cuda.is_initialized() or dist.is_initialized() else None)
