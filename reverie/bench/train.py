"""`reverie bench train`: tokens/s of a training step beside transformers' hybrids of the same sizes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

from reverie.bench.card import Details, Findings, Row, number
from reverie.bench.count import count_flops
from reverie.bench.machine import Peak
from reverie.bench.sides import CURVE_STEPS, OURS, SHAPES, WINDOW, Shape, Side, batch_of, sides
from reverie.bench.timer import alternate
from reverie.errors import UserError
from reverie.results.card import Report
from reverie.tasks import Batch

TARGET = 3.0
WORSE = 1.05  # our loss at the end over the other's, at most
COMPILED = ", compiled"
SPEEDS = "tokens per second"
NOTES = (
    f"One window: {WINDOW} tokens, every position labelled; float32.",
    "A training step: forward, backward, clipping, Muon and AdamW, the same for all; N = 1.",
    "ratio: our fastest way of running over the fastest other, compiled by torch.compile or not. both_eager, "
    "both_compiled: like over like; ours_compiled: over the fastest other as it comes. forward_and_backward: as ratio, "
    "without clipping and optimisers; at_matmul_peak: the same if ours did its matrix products at the machine's peak "
    "and nothing else.",
    "GFLOPS: of forward and backward.",
    "loss_half_way, loss_at_end: mean of ten steps, in nats per token; a hundred steps on the same data. The text "
    "allows 1.21.",
)


def measure(peak: Peak, report: Report, shapes: Sequence[Shape] = SHAPES, seconds: float = 40.0) -> Findings:
    """Each model as it comes and compiled.

    Raises:
        UserError: our model learns worse from the same data; no time is reported then.
    """
    compared: list[Row] = []
    speeds: list[Row] = []
    losses: list[Row] = []
    for i, shape in enumerate(shapes):
        report(2 * i, 2 * len(shapes), f"{shape.name}: training steps")
        measured = _measure_shape(shape, seconds)
        speeds += [_row(shape, name, entry, peak) for name, entry in measured.items()]
        compared.append(_compare(shape, measured, peak))
        report(2 * i + 1, 2 * len(shapes), f"{shape.name}: loss curves")
        losses += _compare_losses(shape, _loss_curves(shape))
    return Findings(
        name="train",
        ratio=min(number(row, "ratio") for row in compared),
        target=TARGET,
        better="higher",
        details=Details(
            tables={"ours over the fastest other": compared, SPEEDS: speeds, "loss on the same data": losses},
            notes=list(NOTES),
        ),
    )


class _Measured(NamedTuple):
    """A model, as it comes or compiled."""

    step: float  # tokens per second
    backward: float  # the same of forward and backward
    flops: float  # a token, of forward and backward


def _measure_shape(shape: Shape, seconds: float) -> dict[str, _Measured]:
    """Measurements of one shape by name, ours first."""
    batches = [batch_of(shape, step) for step in range(4)]
    tokens = batches[0].tokens.numel()
    flops = {name: count_flops(partial(side.backward, batches[0])) for name, side in sides(shape).items()}
    chosen = _ways(shape)
    steps = alternate(
        {name: partial(_next_step, side, batches, count()) for name, side in chosen.items()}, seconds=seconds / 2
    )
    backward = alternate(
        {name: partial(side.backward, batches[0]) for name, side in chosen.items()}, seconds=seconds / 4
    )
    return {
        name: _Measured(
            tokens / steps[name].median, tokens / backward[name].median, flops[name.removesuffix(COMPILED)] / tokens
        )
        for name in chosen
    }


def _ways(shape: Shape) -> dict[str, Side]:
    """Every side as it comes, and another one compiled."""
    chosen: dict[str, Side] = {}
    for (name, side), compiled in zip(sides(shape).items(), sides(shape).values(), strict=True):
        compiled.compile()
        chosen |= {name: side, name + COMPILED: compiled}
    return chosen


def _next_step(side: Side, batches: Sequence[Batch], counter: count[int]) -> float:
    step = next(counter)
    return side.train(batches[step % len(batches)], min(step, side.recipe.train.steps - 1))


def _row(shape: Shape, name: str, entry: _Measured, peak: Peak) -> Row:
    gflops = entry.flops * entry.backward / 1e9
    return {
        "shape": shape.name,
        "batch": shape.batch_size,
        "model": name,
        "tokens_per_s": entry.step,
        "forward_and_backward_per_s": entry.backward,
        "GFLOPS": gflops,
        "%_of_matmul_peak": peak.share(gflops),
    }


def _compare(shape: Shape, measured: dict[str, _Measured], peak: Peak) -> Row:
    """Ours over the fastest other, in several ways."""
    compiled, eager = ({name: x for name, x in measured.items() if (COMPILED in name) == way} for way in (True, False))

    def fastest(entries: dict[str, _Measured], *, ours: bool, backward: bool = False) -> float:
        return max(x.backward if backward else x.step for name, x in entries.items() if name.startswith(OURS) == ours)

    others = [name for name in measured if not name.startswith(OURS)]
    their_backward = fastest(measured, ours=False, backward=True)
    return {
        "shape": shape.name,
        "fastest_other": max(others, key=lambda name: measured[name].step),
        "ratio": fastest(measured, ours=True) / fastest(measured, ours=False),
        "target": TARGET,
        "both_eager": fastest(eager, ours=True) / fastest(eager, ours=False),
        "both_compiled": fastest(compiled, ours=True) / fastest(compiled, ours=False),
        "ours_compiled": fastest(compiled, ours=True) / fastest(eager, ours=False),
        "forward_and_backward": fastest(measured, ours=True, backward=True) / their_backward,
        "at_matmul_peak": peak.float32_gflops * 1e9 / measured[OURS].flops / their_backward,
    }


def _loss_curves(shape: Shape) -> list[Row]:
    """The loss by step on the same data; of the others as they come, since it decides nothing of them."""
    chosen = {name: side for name, side in _ways(shape).items() if name.startswith(OURS) or COMPILED not in name}
    return [
        {"step": step + 1, **{name: side.train(batch_of(shape, step), step) for name, side in chosen.items()}}
        for step in range(CURVE_STEPS)
    ]


def _compare_losses(shape: Shape, curves: Sequence[Row]) -> list[Row]:
    """Raises UserError where ours, compiled or not, is the worse at the end."""
    rows: list[Row] = []
    for name in (key for key in curves[0] if key != "step"):
        losses = [number(row, name) for row in curves]
        half, end = (statistics.fmean(part[-10:]) for part in (losses[: len(losses) // 2], losses))
        rows.append({"shape": shape.name, "model": name, "loss_half_way": half, "loss_at_end": end})
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
