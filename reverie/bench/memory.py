"""`reverie bench memory`: peak memory of a training step over windows and passes, by what the backward pass finds kept.

Each step runs in a process of its own, which this file is too: `python -m reverie.bench.memory STEP`.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reverie.bench.card import Details, Findings, Panel, Report, Row, number
from reverie.bench.check import random_model, require_equal_gradients
from reverie.bench.machine import Peak
from reverie.bench.timing import alternate
from reverie.errors import UserError
from reverie.model import HybridConfig, HybridLM
from reverie.recipe import load_recipe
from reverie.sleep import SleepConfig, rollout
from reverie.sleep.gradients import Backward

Checkpoint = Literal["none", "pass", "window"]
CHECKPOINTS: tuple[Checkpoint, ...] = ("none", "pass", "window")
WINDOWS = (1, 4, 16)
PASSES = (1, 2, 4)
TIMED = (4, 4)  # windows and passes that checkpointing is timed at
TARGET = 1.5
LABELS = 16  # behind the last window
VOCAB = 64
TOLERANCE = 1e-6  # of the largest entry of a gradient: the same operations in the same order
SEED = 0

# Freed memory goes back at once, so that the peak is of what was alive together.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class Step(BaseModel):
    """One training step's forward and backward: `windows` to sleep over, then labels to predict."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: HybridConfig
    windows: int
    passes: int
    checkpoint: Checkpoint
    window_size: int = 256
    batch_size: int = 4

    def gradients(self, model: HybridLM) -> None:
        """Leaves them in the parameters."""
        random = torch.Generator().manual_seed(SEED)
        shape = (self.batch_size, self.windows * self.window_size + LABELS)
        tokens = torch.randint(self.model.vocab_size, shape, generator=random)
        loss_mask = (torch.arange(shape[1]) >= shape[1] - LABELS).expand(shape)
        sleep = SleepConfig(window_size=self.window_size, num_sleep_passes=self.passes)
        backward = Backward(activation_checkpoint=self.checkpoint)
        logits, _ = rollout(model, tokens, loss_mask, sleep, backward=backward)
        F.cross_entropy(logits, tokens[loss_mask]).backward()


def measure(
    peak: Peak,
    report: Report,
    step: Step | None = None,
    windows: Sequence[int] = WINDOWS,
    passes: Sequence[int] = PASSES,
    timed: tuple[int, int] = TIMED,
    seconds: float = 30.0,
) -> Findings:
    """Peaks of every number of windows and passes under every kind of checkpointing, and what that costs in time.

    Args:
        step: model, window and batch; the model of rule110/base if absent.

    Raises UserError where checkpointing changes a gradient; then nothing is measured.
    """
    model = load_recipe("rule110/base").hybrid.model_copy(update={"vocab_size": VOCAB})
    step = step or Step(model=model, windows=1, passes=1, checkpoint="none")
    cases = list(product(windows, passes))
    total = len(cases) * len(CHECKPOINTS) + 2
    report(0, total, "gradients")
    check_gradients(step.model_copy(update={"windows": 2, "passes": 2, "window_size": 16, "batch_size": 2}))
    memory: list[Row] = []
    tensors: list[Row] = []
    for i, (w, n) in enumerate(cases):
        peaks = {}
        for j, kind in enumerate(CHECKPOINTS):
            report(1 + i * len(CHECKPOINTS) + j, total, f"{w} windows, N = {n}, checkpoint {kind}")
            peaks[kind] = peak_memory(step.model_copy(update={"windows": w, "passes": n, "checkpoint": kind}))
        memory.append({"windows": w, "N": n} | {f"{kind}_MiB": resident for kind, (resident, _) in peaks.items()})
        tensors.append({"windows": w, "N": n} | {f"{kind}_MiB": counted for kind, (_, counted) in peaks.items()})
    report(total - 1, total, "time")
    best = min(CHECKPOINTS, key=lambda kind: number(memory[-1], f"{kind}_MiB"))
    most = max(number(row, f"{best}_MiB") for row in memory)
    columns = tuple(f"{kind}_MiB" for kind in CHECKPOINTS)
    return Findings(
        name="memory",
        ratio=most / number(memory[0], "none_MiB"),
        target=TARGET,
        better="lower",
        details=Details(
            tables={
                "peak memory": memory,
                "of it in tensors": tensors,
                "time of forward and backward": _times(step, timed, seconds),
            },
            panels=[
                Panel(
                    title=f"peak memory, N = {passes[-1]}",
                    table="peak memory",
                    x="windows",
                    y=columns,
                    where={"N": passes[-1]},
                    y_label="MiB",
                    log=True,
                ),
                Panel(
                    title=f"peak memory, {windows[-1]} windows",
                    table="peak memory",
                    x="N",
                    y=columns,
                    where={"windows": windows[-1]},
                    y_label="MiB",
                    log=True,
                ),
            ],
            notes=[
                f"Forward and backward of width {step.model.width}, {len(step.model.layers)} blocks, batch "
                f"{step.batch_size}, windows of {step.window_size} tokens to sleep over and {LABELS} labels behind "
                "them; memory on top of what the process held before the step, gradients included, parameters not.",
                "In tensors: bytes of those that the step made, counted as they came and went.",
                f"The headline is the most under {best}, over none at windows {windows[0]}, N = {passes[0]}. Lower is "
                "better.",
            ],
        ),
    )


def check_gradients(step: Step) -> None:
    """Raises UserError where checkpointing changes a gradient."""
    models = {kind: random_model(step.model, SEED) for kind in CHECKPOINTS}
    for kind, model in models.items():
        step.model_copy(update={"checkpoint": kind}).gradients(model)
        require_equal_gradients(model, models["none"], TOLERANCE, f'under activation_checkpoint "{kind}"')


def _times(step: Step, timed: tuple[int, int], seconds: float) -> list[Row]:
    steps = {
        kind: step.model_copy(update={"windows": timed[0], "passes": timed[1], "checkpoint": kind})
        for kind in CHECKPOINTS
    }
    model = random_model(step.model, SEED)
    calls: dict[str, Callable[[], object]] = {kind: partial(steps[kind].gradients, model) for kind in CHECKPOINTS}
    times = alternate(calls, seconds=seconds, least=3)
    return [
        {
            "checkpoint": kind,
            "windows": timed[0],
            "N": timed[1],
            "ms": 1e3 * timing.median,
            "over_none": timing.median / times["none"].median,
        }
        for kind, timing in times.items()
    ]


def peak_memory(step: Step) -> tuple[float, float]:
    """MiB on top of what a process of its own held before the step: of the process, and in tensors alone.

    Raises UserError off Linux, or where the step cannot run, for want of memory say.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise UserError("reverie bench memory needs Linux: it reads the peak of a process from /proc")
    command = [sys.executable, "-m", "reverie.bench.memory", step.model_dump_json()]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, env=os.environ | _ALLOCATOR | threads, capture_output=True, text=True)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or [f"it ended with {done.returncode}"]
        raise UserError(f"a step of {step.windows} windows and N = {step.passes} could not be measured: {why[0]}")
    resident, tensors = json.loads(done.stdout)
    return resident, tensors


# In the process of a step.


class TensorBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made under it that are alive, and their peak."""

    def __init__(self, others: Iterable[Tensor]) -> None:
        """`others` were there before; a view of a parameter is no new memory."""
        super().__init__()
        self._alive = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in others}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        weakref.finalize(storage, self._gone, key, size)
        self._alive += size
        self.peak = max(self.peak, self._alive)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._alive -= size


def count_tensor_bytes(step: Step, model: HybridLM) -> int:
    """At the peak of the step, among tensors that it made."""
    with TensorBytes([*model.parameters(), *model.buffers()]) as counter:
        step.gradients(model)
    return counter.peak


def _run_step(step: Step) -> None:
    model = random_model(step.model, SEED)
    # what libraries load and set up at first use is not the step's
    count_tensor_bytes(step.model_copy(update={"windows": 1, "window_size": 16, "batch_size": 1}), model)
    model.zero_grad()
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status_mib("VmRSS")
    tensors = count_tensor_bytes(step, model)
    print(json.dumps([_status_mib("VmHWM") - before, tensors / 2**20]))


def _status_mib(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    _run_step(Step.model_validate_json(sys.argv[1]))
