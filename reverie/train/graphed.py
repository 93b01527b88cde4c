"""`train.cuda_graph`: a whole training step, recorded once and then replayed by the GPU without the CPU.

A step of a small model is thousands of kernels of a few microseconds each; launched one by one, most of the time goes
into launching. Whatever a step reads must stand in the same place each time, and whatever the CPU decides must be
decided before: so there is a graph for every number of passes, stage, and set of windows with labels. A step is an
ordinary one where rows have labels in different windows: what runs then depends on how many rows sleep in which.
"""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reverie.errors import UserError
from reverie.model import HybridLM, LanguageModel
from reverie.sleep import SleepConfig
from reverie.tasks import Batch
from reverie.train.data import Ready
from reverie.train.distributed import ParallelModel, Processes
from reverie.train.schedule import Schedule
from reverie.train.step import Step, descend, loss_sum, take_step

# Real steps, not recorded, before one of their kind is: in them kernels are compiled and chosen, and optimisers make
# their state. The last of them is the very computation that is recorded: nothing may be left to compile by then.
WARM_UP = 3
AHEAD = 20  # steps before the CPU asks what they found
MOST_GRAPHS = 16  # each takes time to record; where labels wander, steps of rarer kinds stay ordinary ones

Replay = Callable[[], Tensor]
Record = Callable[[Callable[[], Tensor]], Replay]
"""Of a computation of some tensor: does it again each time it is called, into the same tensor."""


class _Kind(NamedTuple):
    """The settings that a graph was recorded for."""

    sleep: SleepConfig
    fast_weights_only: bool
    labelled: tuple[bool, ...]  # windows, of all rows


def check_graphable(model: LanguageModel, device: torch.device | str, processes: Processes) -> None:
    """Raises UserError where steps cannot be recorded."""
    if torch.device(device).type != "cuda":
        raise UserError(f"train.cuda_graph needs a CUDA device, this is {device}: set train.cuda_graph=false")
    if processes.parallel:
        raise UserError("train.cuda_graph is for a single process: set train.cuda_graph=false, or train with one")
    if not isinstance(model, HybridLM):
        raise UserError(
            "train.cuda_graph takes reverie's own blocks, those of a pretrained model may wait for the GPU: set "
            "train.cuda_graph=false"
        )


def cuda_graphs(device: torch.device) -> Record:
    """Recording does not compute. The graphs share their memory: nothing of one outlives it but what it returns."""
    memory, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(compute: Callable[[], Tensor]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        gc.collect()  # what is left of an ordinary step's autograd graph would tie the recorded one to its stream
        torch.cuda.synchronize(device)
        # Other threads may talk to the GPU meanwhile: the backward pass runs in one of autograd's own.
        with torch.cuda.graph(graph, pool=memory, stream=stream, capture_error_mode="thread_local"):
            result = compute()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    return record


class GraphedSteps:
    """Takes steps and tells later what they found; as `EagerSteps`."""

    def __init__(
        self,
        schedule: Schedule,
        model: LanguageModel,
        optimizers: list[Optimizer],
        parallel: ParallelModel,
        record: Record | None = None,
    ) -> None:
        self._schedule, self._model, self._optimizers, self._parallel = schedule, model, optimizers, parallel
        self._record = record or cuda_graphs(next(model.parameters()).device)
        self._inputs: Batch | None = None
        self._taken: Counter[_Kind] = Counter()
        self._graphs: dict[_Kind, Replay] = {}
        self._found: list[Step | tuple[int, Tensor]] = []  # or the step's number, and [loss, norm]

    @property
    def full(self) -> bool:
        """True if `found` must be called before the next step."""
        return len(self._found) >= AHEAD

    def take(self, step: int, ready: Ready, *, watch: bool) -> None:
        """Raises FloatingPointError as `take_step` does."""
        schedule, labelled = self._schedule, ready.labels > 0
        kind = _Kind(
            schedule.sleep_at(step), schedule.stage(step).fast_weights_only, tuple(labelled.any(dim=0).tolist())
        )
        rows_differ = not torch.equal(labelled.any(dim=0), labelled.all(dim=0))
        full = kind not in self._graphs and len(self._graphs) >= MOST_GRAPHS
        if watch or full or rows_differ or self._taken[kind] < WARM_UP - 1:
            self._found.append(
                take_step(
                    schedule, self._model, self._optimizers, step, ready.batch, self._parallel,
                    labels=ready.labels, watch=watch,
                )
            )  # fmt: skip
        else:
            self._found.append((step, self._as_recorded(kind, step, ready.batch)))
        if not watch and not rows_differ:  # such a step is computed in another way
            self._taken[kind] += 1

    def found(self) -> list[Step]:
        """The results of the steps since the last call.

        Raises:
            FloatingPointError: the loss or the gradient was not finite; parameters are spoilt since then.
        """
        found, self._found = self._found, []
        later = [numbers for step in found if not isinstance(step, Step) for numbers in step[1:]]
        values = iter(torch.stack(later).tolist() if later else [])  # waits for the GPU, once
        steps = []
        for step in found:
            if not isinstance(step, Step):
                loss, norm = next(values)
                if not math.isfinite(loss + norm):
                    raise FloatingPointError(f"step {step[0] + 1} had a loss of {loss} and a gradient of norm {norm}")
                step = Step(loss, norm)
            steps.append(step)
        return steps

    def _as_recorded(self, kind: _Kind, step: int, batch: Batch) -> Tensor:
        """[loss, norm of the gradient] of a step; the first time it is rehearsed, the second time recorded."""
        if self._inputs is None:
            self._inputs = Batch(*(x.clone() for x in batch))
        for place, x in zip(self._inputs, batch, strict=True):
            place.copy_(x)
        inputs = self._inputs
        if kind not in self._graphs:
            self._schedule.freeze_others(self._model, step)
            if self._taken[kind] < WARM_UP:
                self._schedule.set_lr(self._optimizers, step)
                return self._step(kind, inputs)
            self._graphs[kind] = self._record(lambda: self._step(kind, inputs))
        self._schedule.set_lr(self._optimizers, step)
        return self._graphs[kind]().clone()

    def _step(self, kind: _Kind, batch: Batch) -> Tensor:
        """The same as `take_step`, but for what would make the CPU wait; [loss, norm of the gradient]."""
        labelled, train = torch.tensor(kind.labelled).expand(len(batch.tokens), -1), self._schedule.train
        total = loss_sum(
            self._model, batch, kind.sleep, labelled, dtype=train.dtype, backward=train.backward, fixed_sizes=True
        )
        loss = total / batch.loss_mask.sum()
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in self._model.parameters() if p.grad is not None])
        descend(self._model, self._optimizers, norm, self._schedule.optim.grad_clip)
        return torch.stack([loss.detach(), norm])
