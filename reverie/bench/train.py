"""`reverie bench train`: tokens/s of a training step beside transformers' hybrids of the same sizes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

import torch

from reverie.bench.card import Details, Findings, Panel, Row, number
from reverie.bench.count import count_flops
from reverie.bench.machine import Peak
from reverie.bench.sides import (
    CURVE_STEPS,
    DTYPES,
    OURS,
    SHAPES,
    WINDOW,
    Dtype,
    Shape,
    Side,
    batch_of,
    recipe_of,
    sides,
)
from reverie.bench.timer import Timing, alternate
from reverie.errors import UserError
from reverie.results.card import Report
from reverie.tasks import Batch

TARGET = 3.0
WORSE = 1.05  # our loss at the end over the other's, at most
COMPILED = ", compiled"
NOTES = (
    f"One window: {WINDOW} tokens, every position labelled. Rule 110: the paper's 4 windows of 24 bits, read and "
    "evicted, then 4 labels.",
    "A training step: forward, backward, clipping, Muon and AdamW, the same for all; N = 1.",
    "ratio: our fastest way of running over the fastest other, compiled by torch.compile or not. both_eager, "
    "both_compiled: like over like; ours_compiled: over the fastest other as it comes. forward_and_backward: as ratio, "
    "without clipping and optimisers; at_matmul_peak: the same if ours did its matrix products at the machine's peak "
    "and nothing else.",
    "Each side in the number format in which it is faster. GFLOPS: of forward and backward.",
    "loss_half_way, loss_at_end: mean of ten steps, in nats per token; a hundred steps on the same data. The text "
    "allows 1.21.",
)


def measure(peak: Peak, report: Report, shapes: Sequence[Shape] = SHAPES, seconds: float = 40.0) -> Findings:
    """Each model in the number format in which it is faster, as it comes and compiled.

    Raises:
        UserError: our model learns worse from the same data in one window; no time is reported then. (Rule 110 needs
            more steps than there is time for.)
    """
    compared: list[Row] = []
    speeds: list[Row] = []
    losses: list[Row] = []
    curves: dict[str, list[Row]] = {}
    parts = 2 * len(shapes)
    for i, shape in enumerate(shapes):
        report(2 * i, parts, f"{shape.name}: training steps")
        measured = _measure_shape(shape, seconds)
        rows = [_row(shape, name, entry, peak) for name, entry in measured.items()]
        speeds += rows
        compared.append(_compare(shape, rows, peak, measured[OURS]))
        report(2 * i + 1, parts, f"{shape.name}: loss curves")
        if not shape.rule110:
            curve = _loss_curves(shape, {name: entry.dtype for name, entry in measured.items()})
            losses += _compare_losses(shape, curve)
            curves[f"loss, {shape.name}"] = curve
    return Findings(
        name="train",
        ratio=min(number(row, "ratio") for row in compared),
        target=TARGET,
        better="higher",
        details=Details(
            tables={
                "ours over the fastest other": compared,
                "tokens per second": speeds,
                "loss on the same data": losses,
            },
            curves=curves,
            panels=_panels(curves),
            notes=list(NOTES),
        ),
    )


class _Measured(NamedTuple):
    """A model, as it comes or compiled, in its number format."""

    side: Side
    step: Timing
    backward: Timing  # forward and backward
    flops: int  # of forward and backward
    batch: Batch

    @property
    def dtype(self) -> Dtype:
        return self.side.recipe.train.dtype


def _measure_shape(shape: Shape, seconds: float) -> dict[str, _Measured]:
    """Measurements of one shape by name, ours first."""
    batches = [batch_of(shape, recipe_of(shape, "float32"), step) for step in range(4)]
    chosen: dict[str, Side] = {}
    flops: dict[str, int] = {}
    for name, dtype in _faster_dtypes(shape, batches, seconds / 4).items():
        chosen[name], compiled = (sides(shape, dtype)[name] for _ in range(2))
        flops[name] = flops[name + COMPILED] = count_flops(partial(chosen[name].backward, batches[0]))
        if name == OURS or not shape.rule110:  # the cache that takes others through windows is not for compiling
            compiled.compile()
            chosen[name + COMPILED] = compiled
    steps = alternate(
        {name: partial(_next_step, side, batches, count()) for name, side in chosen.items()}, seconds=seconds / 2
    )
    backward = alternate(
        {name: partial(side.backward, batches[0]) for name, side in chosen.items()}, seconds=seconds / 4
    )
    return {
        name: _Measured(side, steps[name], backward[name], flops[name], batches[0]) for name, side in chosen.items()
    }


def _faster_dtypes(shape: Shape, batches: Sequence[Batch], seconds: float) -> dict[str, Dtype]:
    everyone = {(name, dtype): side for dtype in DTYPES for name, side in sides(shape, dtype).items()}
    calls = {" ".join(key): partial(_next_step, side, batches, count()) for key, side in everyone.items()}
    steps = alternate(calls, seconds=seconds)
    return {name: min(DTYPES, key=lambda dtype: steps[f"{name} {dtype}"].median) for name, _ in everyone}


def _next_step(side: Side, batches: Sequence[Batch], counter: count[int]) -> float:
    step = next(counter)
    return side.train(batches[step % len(batches)], min(step, side.recipe.train.steps - 1))


def _row(shape: Shape, name: str, entry: _Measured, peak: Peak) -> Row:
    tokens, gflops = entry.batch.tokens.numel(), entry.flops / entry.backward.median / 1e9
    return {
        "shape": shape.name,
        "batch": shape.batch_size,
        "model": name,
        "faster_in": entry.dtype,
        "tokens_per_s": tokens / entry.step.median,
        "forward_and_backward_per_s": tokens / entry.backward.median,
        "GFLOPS": gflops,
        "%_of_matmul_peak": peak.share(gflops, getattr(torch, entry.dtype)),
    }


def _compare(shape: Shape, rows: Sequence[Row], peak: Peak, ours: _Measured) -> Row:
    """Ours over the fastest other, in several ways."""

    def ratio(mine: Sequence[bool], others: Sequence[bool], column: str = "tokens_per_s") -> float | None:
        """Over those of the others; True stands for compiled, False for as it comes."""
        speeds: dict[bool, list[float]] = {True: [], False: []}
        for row in rows:
            name = str(row["model"])
            is_ours = name.startswith(OURS)
            if name.endswith(COMPILED) in (mine if is_ours else others):
                speeds[is_ours].append(number(row, column))
        return max(speeds[True]) / max(speeds[False]) if speeds[False] else None

    eager, compiled, either, backward = (False,), (True,), (False, True), "forward_and_backward_per_s"
    others = [row for row in rows if not str(row["model"]).startswith(OURS)]
    at_peak = ours.batch.tokens.numel() * max(peak.float32_gflops, peak.bfloat16_gflops) * 1e9 / ours.flops
    return {
        "shape": shape.name,
        "fastest_other": max(others, key=lambda row: number(row, "tokens_per_s"))["model"],
        "ratio": ratio(either, either),
        "target": TARGET,
        "both_eager": ratio(eager, eager),
        "both_compiled": ratio(compiled, compiled),
        "ours_compiled": ratio(compiled, eager),
        "forward_and_backward": ratio(either, either, backward),
        "at_matmul_peak": at_peak / max(number(row, backward) for row in others),
    }


def _loss_curves(shape: Shape, dtypes: dict[str, Dtype]) -> list[Row]:
    """Every model's loss by step on the same data, each in its own number format."""
    chosen: dict[str, Side] = {}
    for name, dtype in dtypes.items():
        if name.endswith(COMPILED) and not name.startswith(OURS):
            continue  # the loss of the others decides nothing but whether ours is as good
        chosen[name] = sides(shape, dtype)[name.removesuffix(COMPILED)]
        if name.endswith(COMPILED):
            chosen[name].compile()
    batches = (batch_of(shape, chosen[OURS].recipe, step) for step in range(CURVE_STEPS))
    return [
        {"step": step + 1, **{name: side.train(batch, step) for name, side in chosen.items()}}
        for step, batch in enumerate(batches)
    ]


def _compare_losses(shape: Shape, curves: Sequence[Row]) -> list[Row]:
    """Raises UserError where ours, compiled or not, is the worse at the end."""
    rows: list[Row] = []
    for name in (key for key in curves[0] if key != "step"):
        losses = [number(row, name) for row in curves]
        rows.append(
            {
                "shape": shape.name,
                "model": name,
                "loss_half_way": statistics.fmean(losses[: len(losses) // 2][-10:]),
                "loss_at_end": statistics.fmean(losses[-10:]),
            }
        )
    best = min((row for row in rows if OURS not in str(row["model"])), key=lambda row: number(row, "loss_at_end"))
    theirs = number(best, "loss_at_end")
    for row in rows:
        loss = number(row, "loss_at_end")
        if OURS in str(row["model"]) and not loss <= WORSE * theirs:
            raise UserError(
                f"no time is reported: {shape.name}: after {len(curves)} steps on the same data "
                f"the loss of {row['model']} is {loss:.3f}, that of {best['model']} {theirs:.3f}"
            )
    return rows


def _panels(curves: Mapping[str, Sequence[Row]]) -> list[Panel]:
    table, column = "tokens per second", "tokens_per_s"
    steps = Panel(title="training step", table=table, x="shape", y=(column,), by="model", y_label="tokens/s")
    return [steps] + [
        Panel(title=title, table=title, x="step", y=tuple(rows[0])[1:], y_label="nats per token")
        for title, rows in curves.items()
    ]
