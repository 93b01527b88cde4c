"""The batches of training, step by step, where the model is: made when asked for, ahead by other processes, or there.

A batch depends on task, seed, step and depth alone, whoever makes it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from reverie.recipe import TrainConfig
from reverie.sleep.labels import count_labels
from reverie.tasks import Batch, DeviceTask, Task
from reverie.train.curriculum import STRETCH, scheduled_depth
from reverie.workers import made_ahead

KILLED = (
    "a process that makes the data has ended by itself, perhaps because memory ran out: the last checkpoint can be "
    "resumed"
)


class Ready(NamedTuple):
    """A batch where the model is."""

    batch: Batch
    labels: Tensor  # [B, W] in each window of each row, on the CPU


def make_batch(
    task: Task, config: TrainConfig, step: int, examples: range | None = None, deepest: int | None = None
) -> Batch:
    """The batch of a step (0 is the first).

    Args:
        examples: of the batch; all if None.
        deepest: question asked; as scheduled if None.
    """
    examples = range(config.batch_size) if examples is None else examples
    deepest = scheduled_depth(config, task.depths(), step) if deepest is None else deepest
    return task.batch("train", config.seed, step, examples, max_depth=deepest)


@contextmanager
def ready_batches(
    task: Task,
    config: TrainConfig,
    window_size: int,
    first_step: int,
    examples: range,
    device: torch.device | str,
    deepest: Callable[[int], int],
) -> Iterator[Iterator[Ready]]:
    """The batches of all steps from `first_step` on, or these examples of each, in order.

    On a GPU, tasks that can make them there do; else `data_workers` processes, which end with the context; else a batch
    is made when it is asked for. It makes no difference to what is in them.

    Args:
        deepest: question of a step, asked when the batch is made; on a GPU, when the first one of its stretch is.

    Raises:
        UserError: a process that makes data was killed.
    """
    device = torch.device(device)
    if device.type == "cuda" and isinstance(task, DeviceTask):
        yield made_there(task, config, window_size, first_step, examples, device, deepest)
        return
    steps = range(first_step, config.steps)
    with ExitStack() as processes:
        made = (make_batch(task, config, step, examples, deepest(step)) for step in steps)
        if config.data_workers:
            # Not PyTorch's DataLoader: a worker that dies makes it raise one of several errors, from a signal handler,
            # wherever the main thread is just then.
            make = partial(_arrays, task, config, examples)
            ahead = made_ahead(make, steps, config.data_workers, if_killed=KILLED, context=_context())
            made = (Batch(*map(torch.from_numpy, arrays)) for arrays in processes.enter_context(ahead))
        yield (Ready(_moved(batch, device), count_labels(batch.loss_mask, window_size)) for batch in made)


def made_there(
    task: DeviceTask,
    config: TrainConfig,
    window_size: int,
    first_step: int,
    examples: range,
    device: torch.device,
    deepest: Callable[[int], int],
) -> Iterator[Ready]:
    """Batches made by the task on the device, a stretch of steps at a time; the CPU waits for it once for all of these.

    A stretch begins at a multiple of its length, so that nothing in it is made before the one in front is learnt from.
    """
    for start in range(first_step - first_step % STRETCH, config.steps, STRETCH):
        steps = range(max(start, first_step), min(start + STRETCH, config.steps))
        made = task.batches_on(device, config.seed, steps, examples, [deepest(step) for step in steps])
        labels = count_labels(made.loss_mask, window_size)
        yield from (Ready(Batch(*(x[i] for x in made)), labels[i]) for i in range(len(steps)))


def _arrays(task: Task, config: TrainConfig, examples: range, step: int) -> list[np.ndarray]:
    """The batch as it goes through a pipe: tensors would go by open files in shared memory, and both can run out."""
    return [tensor.numpy() for tensor in make_batch(task, config, step, examples)]


def _context() -> BaseContext:
    """Processes start as they do on this platform, but none is forked from one with CUDA's threads and memory, or with
    those by which it talks to other processes."""
    return get_context("spawn" if torch.cuda.is_initialized() or dist.is_initialized() else None)


def _moved(batch: Batch, device: torch.device) -> Batch:
    """A batch on its way to the device, through pinned memory: the CPU need not wait until the GPU has come to it."""
    if device.type != "cuda":
        return Batch(*(x.to(device) for x in batch))
    return Batch(*(x.pin_memory().to(device, non_blocking=True) for x in batch))
