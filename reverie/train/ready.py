"""The batches of training where the model is, with what the CPU must know of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from reverie.labels import count_labels
from reverie.recipe import Recipe
from reverie.tasks import Batch, DeviceTask
from reverie.train.batches import batches, max_depth

STEPS_AT_ONCE = 64  # made on the device: some hundred small kernels, however many steps they serve


class Ready(NamedTuple):
    batch: Batch
    labels: list[int]  # in each window


@contextmanager
def ready_batches(
    recipe: Recipe, first_step: int, examples: range | None = None, device: torch.device | str = "cpu"
) -> Iterator[Iterator[Ready]]:
    """The batches of all steps from `first_step` on, or these examples of each, in order.

    On a GPU, tasks that can make them there do; it makes no difference to what is in them.

    Raises:
        UserError: a process that makes data was killed.
    """
    device = torch.device(device)
    if device.type != "cpu" and isinstance(recipe.task, DeviceTask):
        yield made_there(recipe, first_step, examples, device)
        return
    with batches(recipe, first_step, examples) as made:
        yield (Ready(_moved(batch, device), count_labels(batch.loss_mask, recipe.sleep.window_size)) for batch in made)


def made_there(
    recipe: Recipe, first_step: int, examples: range | None, device: torch.device, at_once: int = STEPS_AT_ONCE
) -> Iterator[Ready]:
    """By the task, on the device, many steps at a time; the CPU waits for it once for all of these."""
    assert isinstance(recipe.task, DeviceTask)
    examples = range(recipe.train.batch_size) if examples is None else examples
    for first in range(first_step, recipe.train.steps, at_once):
        steps = range(first, min(first + at_once, recipe.train.steps))
        depths = [max_depth(recipe, step) for step in steps]
        made = recipe.task.batches_on(device, recipe.train.seed, steps, examples, depths)
        windows = made.loss_mask.split(recipe.sleep.window_size, dim=2)
        labels = torch.stack([mask.sum((1, 2)) for mask in windows], dim=1).tolist()
        yield from (Ready(Batch(*(x[i] for x in made)), labels[i]) for i in range(len(steps)))


def _moved(batch: Batch, device: torch.device) -> Batch:
    """By way of pinned memory the CPU need not wait until the GPU has come to it."""
    if device.type != "cuda":
        return Batch(*(x.to(device) for x in batch))
    return Batch(*(x.pin_memory().to(device, non_blocking=True) for x in batch))
