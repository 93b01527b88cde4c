"""`reverie bench train`: tokens/s of a training step beside transformers' hybrids of the same sizes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from reverie.bench.card import Details, Findings, Row, number
from reverie.bench.count import count_flops
from reverie.bench.machine import Peak
from reverie.bench.sides import CURVE_STEPS, OURS, SHAPES, WINDOW, Shape, Side, batch_of, recipe_of, sides
from reverie.bench.timer import alternate
from reverie.errors import UserError
from reverie.results.card import Report
from reverie.tasks import Batch

TARGET = 1.0  # forward and backward over OlmoHybrid's, over the ratio of operations
PRODUCTS_TARGET = 1.25  # forward and backward over our matrix products alone
LARGE = 256  # width from which on products take most of the time
RIVAL, PRODUCTS = "OlmoHybrid", "matrix products"
WORSE = 1.05  # our loss at the end over the other's, at most
COMPILED = ", compiled"
SPEEDS = "tokens per second"
NOTES = (
    f"One window: {WINDOW} tokens, every position labelled; float32.",
    "A training step: forward, backward, clipping, Muon and AdamW, the same for all; N = 1.",
    "targets: forward and backward, of both as they come. A model that computes as fast comes to the ratio of "
    "operations. Matrix products: of all linear layers, and two of each in the backward pass.",
    "steps: our fastest way of running over the fastest other, compiled by torch.compile or not. both_eager, "
    "both_compiled: like over like; ours_compiled: over the fastest other as it comes.",
    "GFLOPS: of forward and backward.",
    "loss_half_way, loss_at_end: mean of ten steps, in nats per token; a hundred steps on the same data. The text "
    "allows 1.21.",
)


def measure(peak: Peak, report: Report, shapes: Sequence[Shape] = SHAPES, seconds: float = 40.0) -> Findings:
    """Each model as it comes and compiled.

    Raises:
        UserError: our model learns worse from the same data; no time is reported then.
    """
    compared, targets = list[Row](), list[Row]()
    speeds: list[Row] = []
    losses: list[Row] = []
    for i, shape in enumerate(shapes):
        report(2 * i, 2 * len(shapes), f"{shape.name}: training steps")
        measured = _measure_shape(shape, seconds)
        speeds += [_row(shape, name, entry, peak) for name, entry in measured.items() if name != PRODUCTS]
        compared.append(_compare(shape, measured))
        targets += _targets(shape, measured)
        report(2 * i + 1, 2 * len(shapes), f"{shape.name}: loss curves")
        losses += _compare_losses(shape, _loss_curves(shape))
    return Findings(
        name="train",
        ratio=min(number(row, "ratio") for row in targets if row.get("target") == TARGET),
        target=TARGET,
        better="higher",
        details=Details(
            tables={"targets": targets, "steps": compared, SPEEDS: speeds, "loss on the same data": losses},
            notes=list(NOTES),
        ),
    )


class _Measured(NamedTuple):
    """A model, as it comes or compiled; or products alone."""

    step: float  # tokens per second; of products nothing
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
        {name: partial(side.backward, batches[0]) for name, side in chosen.items()}
        | {PRODUCTS: partial(_multiply, chosen[OURS].model, tokens)},
        seconds=seconds / 4,
    )
    measured = {
        name: _Measured(
            tokens / steps[name].median, tokens / backward[name].median, flops[name.removesuffix(COMPILED)] / tokens
        )
        for name in chosen
    }
    products = 6 * sum(layer.weight.numel() for layer in _linear(chosen[OURS].model))
    return measured | {PRODUCTS: _Measured(0.0, tokens / backward[PRODUCTS].median, products)}


def _linear(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


@torch.no_grad()
def _multiply(model: nn.Module, tokens: int) -> None:
    """Every linear layer on rows for all tokens, and the products of its backward pass."""
    for layer in _linear(model):
        x, grad = torch.zeros(tokens, layer.in_features), torch.zeros(tokens, layer.out_features)
        F.linear(x, layer.weight)
        torch.mm(grad, layer.weight)
        torch.mm(grad.mT, x)


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


def _targets(shape: Shape, measured: dict[str, _Measured]) -> list[Row]:
    """Forward and backward as they come: over the rival in units of the ratio of operations; over our products."""
    ours, rival, products = measured[OURS], measured[RIVAL], measured[PRODUCTS]
    faster, operations, slower = (
        ours.backward / rival.backward,
        rival.flops / ours.flops,
        products.backward / ours.backward,
    )
    row: Row = {"shape": shape.name, "what": f"over {RIVAL}, over the ratio of operations", "speed": faster}
    rows = [row | _verdict(faster / operations, TARGET, higher=True) | {"ratio_of_operations": operations}]
    row = {"shape": shape.name, "what": "time over that of our matrix products"}
    if recipe_of(shape).hybrid.width >= LARGE:
        rows.append(row | _verdict(slower, PRODUCTS_TARGET, higher=False))
    else:
        rows.append(row | {"ratio": slower})
    return rows


def _verdict(ratio: float, target: float, *, higher: bool) -> Row:
    met = ratio >= target if higher else ratio <= target
    return {"ratio": ratio, "target": target, "verdict": "met" if met else "not met"}


def _compare(shape: Shape, measured: dict[str, _Measured]) -> Row:
    """Steps of ours over those of the fastest other, in several ways."""
    steps = {name: entry.step for name, entry in measured.items() if name != PRODUCTS}
    compiled, eager = ({name: x for name, x in steps.items() if (COMPILED in name) == way} for way in (True, False))

    def fastest(entries: dict[str, float], *, ours: bool) -> float:
        return max(step for name, step in entries.items() if name.startswith(OURS) == ours)

    others = [name for name in steps if not name.startswith(OURS)]
    return {
        "shape": shape.name,
        "fastest_other": max(others, key=lambda name: steps[name]),
        "over_fastest": fastest(steps, ours=True) / fastest(steps, ours=False),
        "both_eager": fastest(eager, ours=True) / fastest(eager, ours=False),
        "both_compiled": fastest(compiled, ours=True) / fastest(compiled, ours=False),
        "ours_compiled": fastest(compiled, ours=True) / fastest(eager, ours=False),
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
