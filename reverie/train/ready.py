"""The batches of training where the model is, with what the CPU must know of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from reverie.recipe import Recipe
from reverie.sleep.labels import count_labels
from reverie.tasks import Batch, DeviceTask
from reverie.train.batches import batches, max_depth

STRETCH = 64  # steps made at once on the device: some hundred small kernels, however many steps they serve


class Ready(NamedTuple):
    batch: Batch
    labels: Tensor  # [B, W] in each window of each row, on the CPU


@contextmanager
def ready_batches(
    recipe: Recipe,
    first_step: int,
    examples: range | None = None,
    device: torch.device | str = "cpu",
    deepest: Callable[[int], int] | None = None,
) -> Iterator[Iterator[Ready]]:
    """The batches of all steps from `first_step` on, or these examples of each, in order.

    On a GPU, tasks that can make them there do; it makes no difference to what is in them.

    Args:
        deepest: question of a step, asked when the first batch of its stretch (`deepening.py`) is wanted.

    Raises:
        UserError: a process that makes data was killed.
    """
    device = torch.device(device)
    if device.type == "cuda" and isinstance(recipe.task, DeviceTask):
        yield made_there(recipe, first_step, examples, device, deepest)
        return
    with batches(recipe, first_step, examples, deepest) as made:
        yield (Ready(_moved(batch, device), count_labels(batch.loss_mask, recipe.sleep.window_size)) for batch in made)


def made_there(
    recipe: Recipe,
    first_step: int,
    examples: range | None,
    device: torch.device,
    deepest: Callable[[int], int] | None = None,
) -> Iterator[Ready]:
    """By the task, on the device, a stretch of steps at a time; the CPU waits for it once for all of these.

    A stretch begins at a multiple of its length, so that nothing in it is made before the one in front is learnt from.
    """
    assert isinstance(recipe.task, DeviceTask)
    deepest = deepest or partial(max_depth, recipe)
    examples = range(recipe.train.batch_size) if examples is None else examples
    for start in range(first_step - first_step % STRETCH, recipe.train.steps, STRETCH):
        steps = range(max(start, first_step), min(start + STRETCH, recipe.train.steps))
        depths = [deepest(step) for step in steps]
        made = recipe.task.batches_on(device, recipe.train.seed, steps, examples, depths)
        labels = count_labels(made.loss_mask, recipe.sleep.window_size)
        yield from (Ready(Batch(*(x[i] for x in made)), labels[i]) for i in range(len(steps)))


def _moved(batch: Batch, device: torch.device) -> Batch:
    """By way of pinned memory the CPU need not wait until the GPU has come to it."""
    if device.type != "cuda":
        return Batch(*(x.to(device) for x in batch))
    return Batch(*(x.pin_memory().to(device, non_blocking=True) for x in batch))
