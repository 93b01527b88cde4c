"""`reverie bench memory`: peak memory of a training step over windows and passes, by activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from reverie.bench.card import Details, Findings, Row, number
from reverie.bench.check import SEED, random_model, require_equal_gradients
from reverie.bench.count import LiveBytes
from reverie.bench.machine import Peak
from reverie.bench.timer import alternate
from reverie.model import HybridConfig, HybridLM
from reverie.recipe import load_recipe
from reverie.results.card import Report
from reverie.sleep import SleepConfig, rollout
from reverie.sleep.gradients import Backward

Checkpoint = Literal["none", "pass", "window"]
CHECKPOINTS: tuple[Checkpoint, ...] = ("none", "pass", "window")
COLUMNS = tuple(f"{kind}_MiB" for kind in CHECKPOINTS)
WINDOWS = (1, 4, 16)
PASSES = (1, 2, 4)
TIMED = (4, 4)  # windows and passes that checkpointing is timed at
TARGET = 1.5
LABELS = 16  # after the last window
VOCAB = 64
TOLERANCE = 1e-6  # of the largest entry of a gradient: the same operations in the same order


class Step(NamedTuple):
    """One training step's forward and backward: `windows` to sleep over, then labels to predict."""

    model: HybridConfig
    windows: int
    passes: int
    checkpoint: Checkpoint
    window_size: int = 256
    batch_size: int = 4

    def but(self, windows: int, passes: int, checkpoint: Checkpoint) -> Step:
        """The same step with other windows, passes and checkpointing."""
        return self._replace(windows=windows, passes=passes, checkpoint=checkpoint)

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

    Raises:
        UserError: checkpointing changes a gradient; then nothing is measured.
    """
    model = load_recipe("rule110/base").hybrid.model_copy(update={"vocab_size": VOCAB})
    step = step or Step(model, 1, 1, "none")
    cases = list(product(windows, passes))
    total = len(cases) * len(CHECKPOINTS) + 2
    report(0, total, "gradients")
    check_gradients(step.but(2, 2, "none")._replace(window_size=16, batch_size=2))
    memory: list[Row] = [{"windows": w, "N": n} for w, n in cases]
    for i, ((w, n), kind) in enumerate(product(cases, CHECKPOINTS)):
        report(1 + i, total, f"{w} windows, N = {n}, checkpoint {kind}")
        memory[i // len(CHECKPOINTS)][f"{kind}_MiB"] = peak_bytes(step.but(w, n, kind)) / 2**20
    report(total - 1, total, "time")
    best = min(COLUMNS, key=lambda column: number(memory[-1], column))
    return Findings(
        name="memory",
        ratio=max(number(row, best) for row in memory) / number(memory[0], "none_MiB"),
        target=TARGET,
        better="lower",
        details=Details(
            tables={"peak memory": memory, "time of forward and backward": _times(step, timed, seconds)},
            notes=[
                f"Forward and backward of width {step.model.width}, {len(step.model.layers)} blocks, batch "
                f"{step.batch_size}, windows of {step.window_size} tokens to sleep over and {LABELS} labels after "
                "them; bytes of the tensors that the step made, counted as they came and went, gradients included, "
                "parameters not.",
                f"The headline is the most under {best.removesuffix('_MiB')}, over none at windows {windows[0]}, "
                f"N = {passes[0]}. Lower is better.",
            ],
        ),
    )


def check_gradients(step: Step) -> None:
    """Raises UserError where checkpointing changes a gradient."""
    models: dict[Checkpoint, HybridLM] = {kind: random_model(step.model) for kind in CHECKPOINTS}
    for kind, model in models.items():
        step.but(step.windows, step.passes, kind).gradients(model)
        require_equal_gradients(model, models["none"], TOLERANCE, f'under activation_checkpoint "{kind}"')


def peak_bytes(step: Step) -> int:
    """The most bytes alive at a time in tensors that the step made."""
    model = random_model(step.model)
    step._replace(windows=1, window_size=16, batch_size=1).gradients(model)  # what is made once is not the step's
    model.zero_grad()
    with LiveBytes() as live:
        step.gradients(model)
    return live.peak


def _times(step: Step, timed: tuple[int, int], seconds: float) -> list[Row]:
    model = random_model(step.model)
    steps = {kind: step.but(*timed, kind) for kind in CHECKPOINTS}
    calls: dict[str, Callable[[], object]] = {kind: partial(steps[kind].gradients, model) for kind in CHECKPOINTS}
    times = {kind: timing.median for kind, timing in alternate(calls, seconds=seconds, least=3).items()}
    shared: Row = {"windows": timed[0], "N": timed[1]}
    return [
        {"checkpoint": kind, **shared, "ms": 1e3 * time, "over_none": time / times["none"]}
        for kind, time in times.items()
    ]
