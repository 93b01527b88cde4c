"""One optimiser step: the rollout, its loss, gradients, clipping, and both optimisers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from reverie.errors import UserError
from reverie.model import LanguageModel, State
from reverie.results.card import PassStatistics
from reverie.sleep import SleepConfig, rollout_hidden
from reverie.sleep.gradients import EXACT, Backward
from reverie.sleep.labels import count_labels, in_labelled
from reverie.tasks import Batch
from reverie.train.data import Ready
from reverie.train.distributed import ParallelModel, whole
from reverie.train.schedule import Schedule
from reverie.train.stability import PassObserver


class Step(NamedTuple):
    """The results of one optimiser step."""

    loss: float  # nats per labelled token, of the whole batch
    gradient_norm: float  # before clipping
    passes: PassStatistics | None = None  # if asked for


def take_step(
    schedule: Schedule,
    model: LanguageModel,
    optimizers: list[Optimizer],
    step: int,
    batch: Batch,
    parallel: ParallelModel | None = None,
    *,
    labels: Tensor | None = None,
    watch: bool = False,
) -> Step:
    """The optimiser step of that number (0 is the first), on a batch that is where the model is.

    Args:
        parallel: knows the processes among which the batch is shared out, if there are several.
        labels: [B, W], how many there are in each window of each row; to count them here, a GPU would have to be waited
            for.
        watch: the passes asleep are measured.

    Raises:
        UserError: the batch has no label.
        FloatingPointError: the loss or a gradient is not finite; parameters and optimisers are as before the step.
    """
    schedule.freeze_others(model, step)
    schedule.set_lr(optimizers, step)
    sleep, config = schedule.sleep_at(step), schedule.train
    parallel = parallel or ParallelModel(model, batch.tokens.device)
    processes = parallel.processes
    labels = count_labels(batch.loss_mask, sleep.window_size) if labels is None else labels
    asked = labels > 0
    asked[~asked.any(dim=1), -1] = True  # that the blocks which only predict run in every part, whoever has which rows
    all_labels, rows, *rows_asked = processes.sum([int(labels.sum()), len(asked), *asked.sum(dim=0).tolist()])
    if not all_labels:
        raise UserError("no position of the batch is labelled: there is nothing to learn from")
    observer = PassObserver(processes) if watch else None

    def own_loss(part: Batch, labelled: Tensor, model: LanguageModel) -> Tensor:
        loss = loss_sum(model, part, sleep, labelled, dtype=config.dtype, backward=config.backward, observe=observer)
        return loss / (all_labels / processes.world_size)  # its average over processes is that over labels

    own_value = 0.0
    parts = micro_batches(batch, config.micro_batch, config.batch_size // processes.world_size)
    alike = all(number in (0, rows) for number in rows_asked)  # else each process runs its rows' own blocks
    for part, labelled in zip(parts, asked.tensor_split(len(parts)), strict=True):
        own_value += parallel.backward(partial(own_loss, part, labelled), alike=alike)
        if observer is not None:
            observer.next_part()
    value = processes.sum([own_value])[0] / processes.world_size
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if not math.isfinite(value) or not whole(norm).isfinite():
        tensors = [(f"the parameter {name}", p) for name, p in model.named_parameters()]
        tensors += [(f"the gradient of {name}", p.grad) for name, p in model.named_parameters() if p.grad is not None]
        where = not_finite(tensors)
        raise FloatingPointError(f"the loss is {value}" + (f", and {where} is not finite" if where else ""))
    descend(model, optimizers, norm, schedule.optim.grad_clip)
    return Step(value, float(whole(norm)), observer.statistics() if observer else None)


class EagerSteps:
    """Takes steps one by one, and tells at once what they found."""

    def __init__(
        self, schedule: Schedule, model: LanguageModel, optimizers: list[Optimizer], parallel: ParallelModel
    ) -> None:
        self._run = schedule, model, optimizers
        self._parallel = parallel
        self._found: list[Step] = []

    @property
    def full(self) -> bool:
        """True if `found` must be called before the next step."""
        return bool(self._found)

    def take(self, step: int, ready: Ready, *, watch: bool) -> None:
        """Raises FloatingPointError as `take_step` does."""
        self._found.append(take_step(*self._run, step, ready.batch, self._parallel, labels=ready.labels, watch=watch))

    def found(self) -> list[Step]:
        """The results of the steps since the last call."""
        found, self._found = self._found, []
        return found


def micro_batches(batch: Batch, size: int | None, rows: int) -> list[Batch]:
    """The batch in parts of about `size` examples, as even as can be; whole if that is None.

    Args:
        rows: the fewest that a process has of a batch, so that all processes have as many parts.
    """
    if size is None:
        return [batch]
    return [Batch(*columns) for columns in zip(*(x.tensor_split(math.ceil(rows / size)) for x in batch), strict=True)]


def loss_sum(
    model: LanguageModel,
    batch: Batch,
    sleep: SleepConfig,
    labelled: Tensor,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    backward: Backward = EXACT,
    observe: Callable[[int, int, Tensor, State, State], None] | None = None,
    fixed_sizes: bool = False,
) -> Tensor:
    """Cross entropy in nats, summed over the labels of a batch, which stand in the windows `labelled` [B, W].

    With `fixed_sizes` logits are made of every token in labelled windows, and those without a label count nothing: then
    no size, and nothing that the CPU does, depends on where labels stand.
    """
    with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        h, _ = rollout_hidden(model, batch.tokens, sleep, labelled, to_end=False, backward=backward, observe=observe)
        targets, mask = (in_labelled(x, sleep.window_size, labelled) for x in (batch.targets, batch.loss_mask))
        logits = model.head(h if fixed_sizes else h[mask])
    if not fixed_sizes:
        return F.cross_entropy(logits.float(), targets[mask], reduction="sum")
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * mask.flatten()).sum()


def descend(model: nn.Module, optimizers: list[Optimizer], norm: Tensor, grad_clip: float) -> None:
    """Clip the gradients, whose norm this is, move the parameters, and let the gradients go."""
    nn.utils.clip_grads_with_norm_(model.parameters(), grad_clip, norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds NaN or infinity."""
    return next((name for name, tensor in tensors if not whole(tensor.isfinite().all())), None)
