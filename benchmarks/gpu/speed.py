"""How long a training step takes: the steps of `reverie.train` itself, with its data and its optimisers.

The clock is read where the device has been waited for, once for each slice of some steps; the number is the median over
slices, after steps that compile, capture and warm up.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from kernel_profile import profiler, slowest, time_by_kind
from stopwatch import synchronise

from reverie.recipe import Recipe, changed
from reverie.recipe.build import build_model
from reverie.results.checkpoint import FILE_NAME, Progress
from reverie.results.evaluate import evaluate
from reverie.train.run import train

WARM_UP_STEPS = 3  # compiling is done in the first
GRAPH_WARM_UP_STEPS = 12  # a graph is captured only after some steps
RANDOM_KINDS = 10  # with random numbers of passes, each is compiled and captured when it has come up some times
SLICE_S = {"cuda": 0.25, "cpu": 0.04}
LEAST_SLICES = 5
PROFILED_STEPS = 3
TIMING_LR = 1e-6  # nothing is to be learned here, and nothing may diverge


class _Enough(Exception):
    """All that was wanted is measured."""


class _Clock:
    """Called after every step: warm-up, then slices, then, if wanted, some steps under the profiler."""

    def __init__(self, device: torch.device, seconds: float, warm_up: int, *, profile: bool) -> None:
        self.device, self.seconds, self.warm_up, self.profile = device, seconds, warm_up, profile
        self.begun = time.perf_counter()
        self.startup_s = 0.0
        self.slices: list[tuple[int, float]] = []  # steps, seconds
        self.kinds: list[dict[str, Any]] = []
        self.kernels: list[dict[str, Any]] = []
        self.losses: list[float] = []
        self._mark: tuple[int, float] | None = None  # step and time at which the slice began
        self._profiler: Any = None

    def __call__(self, progress: Progress, loss: float) -> None:
        self.losses.append(loss)
        if progress.step < self.warm_up:
            return
        if self._mark is not None and self._profiler is None:
            steps, seconds = progress.step - self._mark[0], time.perf_counter() - self._mark[1]
            if steps == 0 or seconds < SLICE_S[self.device.type]:
                return
        self._at_edge(progress.step)

    def _at_edge(self, step: int) -> None:
        synchronise(self.device)
        now = time.perf_counter()
        if self._profiler is not None:
            self._read_profile(step, now)
            return
        if self._mark is None:
            self.startup_s = now - self.begun
        else:
            self.slices.append((step - self._mark[0], now - self._mark[1]))
            enough = len(self.slices) >= LEAST_SLICES and sum(seconds for _, seconds in self.slices) >= self.seconds
            if enough and not self.profile:
                raise _Enough
            if enough:
                self._profiler = profiler(self.device)
                self._profiler.start()
                now = time.perf_counter()
        self._mark = step, now

    def _read_profile(self, step: int, now: float) -> None:
        assert self._mark is not None
        steps = step - self._mark[0]
        if steps < PROFILED_STEPS:
            return
        seconds = now - self._mark[1]
        self._profiler.stop()
        self.kinds = time_by_kind(self._profiler, self.device, steps, seconds)
        self.kernels = slowest(self._profiler, self.device, steps)
        raise _Enough


def time_steps(recipe: Recipe, device: torch.device, folder: Path, seconds: float, *, profile: bool) -> dict[str, Any]:
    """Train in `folder` for about that long once warm, and leave off.

    Returns seconds and tokens of a step, what starting up took, the largest memory, and, if wanted, a profile.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    endless = changed(
        recipe,
        train={"steps": 10**7, "eval_every": 10**7, "checkpoint_every": 10**7},
        optim={"muon_lr": TIMING_LR, "adamw_lr": TIMING_LR},
    )
    warm_up = GRAPH_WARM_UP_STEPS if recipe.train.cuda_graph else WARM_UP_STEPS
    warm_up *= RANDOM_KINDS if recipe.train.num_sleep_passes else 1
    clock = _Clock(device, seconds, warm_up, profile=profile)
    with contextlib.suppress(_Enough):
        train(endless, folder, device=device, report=clock)
    step = statistics.median(seconds / steps for steps, seconds in clock.slices)
    tokens = recipe.train.batch_size * recipe.task.sequence_length
    return {
        "seconds_per_step": step,
        "mean_seconds_per_step": sum(s for _, s in clock.slices) / sum(steps for steps, _ in clock.slices),
        "spread": (max(s / n for n, s in clock.slices) - min(s / n for n, s in clock.slices)) / step,
        "tokens_per_s": tokens / step,
        "startup_s": clock.startup_s,
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
        "weights_bytes": (folder / FILE_NAME).stat().st_size,  # as saved before the first step
        "profile": clock.kinds,
        "kernels": clock.kernels,
    }


def evaluation_seconds(recipe: Recipe, device: torch.device) -> float:
    """Of one point of the curve; once to warm up, once for the clock."""
    model = build_model(recipe.model, recipe.train.seed).to(device)
    begun = 0.0
    for _ in range(2):
        synchronise(device)
        begun = time.perf_counter()
        evaluate(model, recipe.task, recipe.sleep, recipe.train.eval_examples, device=device)
    synchronise(device)
    return time.perf_counter() - begun
