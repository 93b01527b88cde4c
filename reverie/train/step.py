"""One optimiser step: the rollout, its loss, gradients, clipping, and both optimisers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.card import PassStatistics
from reverie.model import LanguageModel
from reverie.recipe import Recipe
from reverie.sleep import rollout
from reverie.tasks import Batch
from reverie.train.distributed import ParallelModel, whole
from reverie.train.optim import set_lr
from reverie.train.stability import PassObserver
from reverie.train.stages import freeze_others, sleep_at, stage_at


class Step(NamedTuple):
    """What one optimiser step found."""

    loss: float  # nats per labelled token, of the whole batch
    gradient_norm: float  # before clipping
    passes: PassStatistics | None  # if asked for


def train_step(
    recipe: Recipe,
    model: LanguageModel,
    optimizers: list[torch.optim.Optimizer],
    step: int,
    batch: Batch,
    parallel: ParallelModel | None = None,
    *,
    watch: bool = False,
) -> Step:
    """One optimiser step on the batch of that step (0 is the first), as its stage says.

    The batch is where the model is; of several processes, which `parallel` knows, each has its share of it. With
    `watch`, the passes asleep are measured.

    Raises:
        FloatingPointError: the loss or a gradient is not finite; parameters and optimisers are as before the step.
    """
    stage = stage_at(recipe, step)
    freeze_others(model, stage)
    sleep = sleep_at(recipe, step)
    parallel = parallel or ParallelModel(model, batch.tokens.device)
    processes = parallel.processes
    # Of each window, in all shares of the batch: all processes go the same way, whatever is in their own.
    labels = processes.sum([int(mask.sum()) for mask in batch.loss_mask.split(recipe.sleep.window_size, dim=1)])
    labelled = [number > 0 for number in labels]
    observer = PassObserver(labelled, processes) if watch else None

    def own_loss(model: LanguageModel) -> Tensor:
        with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=recipe.train.dtype == "bfloat16"):
            logits, _ = rollout(
                model,
                batch.tokens,
                batch.loss_mask,
                sleep,
                labelled=labelled,
                backward=recipe.train.backward,
                observe=observer,
            )
        loss = F.cross_entropy(logits.float(), batch.targets[batch.loss_mask], reduction="sum")
        return loss / (sum(labels) / processes.world_size)  # its average over processes is that over labels

    value = processes.sum([parallel.backward(own_loss)])[0] / processes.world_size
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if not math.isfinite(value) or not whole(norm).isfinite():
        tensors = [(f"the parameter {name}", p) for name, p in model.named_parameters()]
        tensors += [(f"the gradient of {name}", p.grad) for name, p in model.named_parameters() if p.grad is not None]
        where = not_finite(tensors)
        raise FloatingPointError(f"the loss is {value}" + (f", and {where} is not finite" if where else ""))
    nn.utils.clip_grads_with_norm_(model.parameters(), recipe.optim.grad_clip, norm)
    set_lr(optimizers, recipe.optim, step - stage.first, stage.steps)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return Step(value, float(whole(norm)), observer.statistics() if observer else None)


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds NaN or infinity."""
    return next((name for name, tensor in tensors if not whole(tensor.isfinite().all())), None)
