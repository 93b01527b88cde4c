"""`reverie bench train`: tokens/s of a training step beside transformers' hybrids of the same sizes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.bench.card import Details, Findings, Panel, Report, Row, number
from reverie.bench.machine import Peak, count_flops
from reverie.bench.rivals import transformers_hybrids, transformers_logits
from reverie.bench.timing import Timing, alternate
from reverie.errors import UserError
from reverie.model import new_model
from reverie.recipe import Recipe, load_recipe
from reverie.sleep import rollout
from reverie.tasks import Batch
from reverie.train.optim import build_optimizers, set_lr
from reverie.train.step import train_step

TARGET = 3.0
OURS = "reverie"
VOCAB = 64
WINDOW = 24
PERIOD = 8
CURVE_STEPS = 100
CURVE_OPTIM = {"muon_lr": 3e-2, "adamw_lr": 1e-2, "warmup_steps": 10}  # good for all the models in so few steps
LEARNT = 1.5  # nats per token; the text allows 1.21
WORSE = 1.05  # our loss at the end over the other's, at most
SEED = 0

Dtype = Literal["float32", "bfloat16"]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")


class Shape(NamedTuple):
    """A model, a batch and a text."""

    name: str
    recipe: str
    batch_size: int
    rule110: bool = False  # four windows, then four labels; else one window with a label everywhere


SHAPES = (
    Shape("d 64, one window", "depo/nano", 128),
    Shape("d 256, one window", "rule110/base", 64),
    Shape("d 256, Rule 110", "rule110/base", 64, rule110=True),
)


def recipe_of(shape: Shape, dtype: Dtype) -> Recipe:
    """N = 1; unless the text is Rule 110's, with a vocabulary, a window and learning rates of our own."""
    recipe = load_recipe(shape.recipe, [f"train.dtype={dtype}", f"train.batch_size={shape.batch_size}"])
    if shape.rule110:
        return recipe
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"vocab_size": VOCAB}),
            "sleep": recipe.sleep.model_copy(update={"window_size": WINDOW}),
            "optim": recipe.optim.model_copy(update=CURVE_OPTIM),
            "train": recipe.train.model_copy(update={"steps": CURVE_STEPS}),
        }
    )


def batch_of(shape: Shape, recipe: Recipe, step: int) -> Batch:
    """Rule 110, or random strings of 8 symbols three times over with the next symbol as label of every position."""
    if shape.rule110:
        return recipe.task.batch("train", SEED, step, range(shape.batch_size))
    random = torch.Generator().manual_seed(step)
    period = torch.randint(VOCAB, (shape.batch_size, PERIOD), generator=random)
    text = period.repeat(1, WINDOW // PERIOD + 1)[:, : WINDOW + 1]
    everywhere = torch.ones(shape.batch_size, WINDOW, dtype=torch.bool)
    return Batch(text[:, :-1].contiguous(), text[:, 1:].contiguous(), everywhere, everywhere.long(), everywhere.long())


class Side(NamedTuple):
    """One model in one number format."""

    recipe: Recipe
    model: nn.Module
    train: Callable[[Batch, int], float]  # one step with this index, to the loss
    backward: Callable[[Batch], None]  # forward and backward alone


def sides(shape: Shape, dtype: Dtype) -> dict[str, Side]:
    """Ours first; all with the same optimisers."""
    recipe = recipe_of(shape, dtype)
    our_model = new_model(recipe.model, SEED)
    optimizers = build_optimizers(our_model, recipe.optim)

    def train_ours(batch: Batch, step: int) -> float:
        return train_step(recipe, our_model, optimizers, step, batch).loss

    def our_logits(batch: Batch) -> Tensor:
        return rollout(our_model, batch.tokens, batch.loss_mask, recipe.sleep)[0]

    everyone = {OURS: Side(recipe, our_model, train_ours, partial(_backward, our_model, our_logits, dtype))}
    for name, model in transformers_hybrids(recipe.model, SEED).items():
        everyone[name] = _rival(recipe, model, dtype)
    return everyone


def _rival(recipe: Recipe, model: nn.Module, dtype: Dtype) -> Side:
    """What `train_step` does, around a model of transformers."""
    optimizers = build_optimizers(model, recipe.optim)

    def logits(batch: Batch) -> Tensor:
        return transformers_logits(model, batch.tokens, batch.loss_mask, recipe.sleep.window_size)

    def train(batch: Batch, step: int) -> float:
        loss = _loss(logits, batch, dtype)
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        nn.utils.clip_grads_with_norm_(model.parameters(), recipe.optim.grad_clip, norm)
        set_lr(optimizers, recipe.optim, step, recipe.train.steps)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    return Side(recipe, model, train, partial(_backward, model, logits, dtype))


def _loss(logits: Callable[[Batch], Tensor], batch: Batch, dtype: Dtype) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        scores = logits(batch)
    return F.cross_entropy(scores.float(), batch.targets[batch.loss_mask])


def _backward(model: nn.Module, logits: Callable[[Batch], Tensor], dtype: Dtype, batch: Batch) -> None:
    _loss(logits, batch, dtype).backward()
    model.zero_grad()


def measure(peak: Peak, report: Report, shapes: Sequence[Shape] = SHAPES, seconds: float = 40.0) -> Findings:
    """Each model in the number format in which it is faster; the fastest other model counts.

    Raises UserError where our model learns worse from the same data in the first shape; no time is reported then.
    """
    tables: dict[str, list[Row]] = {"ours over the fastest other": [], "tokens per second": []}
    curves: list[Row] = []
    for i, shape in enumerate(shapes):
        report(2 * i, 2 * len(shapes), f"{shape.name}: training steps")
        rows = _measure_shape(shape, peak, seconds)
        tables["tokens per second"] += rows
        tables["ours over the fastest other"].append(_compare(shape, rows))
        if i == 0:
            report(1, 2 * len(shapes), f"{shape.name}: loss curves")
            curves = _loss_curves(shape, {str(row["model"]): _dtype(row) for row in rows})
            tables["loss on the same data"] = _compare_losses(curves)
    return Findings(
        name="train",
        ratio=min(number(row, "ratio") for row in tables["ours over the fastest other"]),
        target=TARGET,
        better="higher",
        details=Details(
            tables=tables,
            curves={"loss": curves},
            panels=[
                Panel(
                    title="training step",
                    table="tokens per second",
                    x="shape",
                    y=("tokens_per_s",),
                    by="model",
                    y_label="tokens/s",
                ),
                Panel(
                    title=f"loss, {shapes[0].name}",
                    table="loss",
                    x="step",
                    y=tuple(key for key in curves[0] if key != "step"),
                    y_label="nats per token",
                ),
            ],
            notes=[
                f"One window: {WINDOW} tokens, every position labelled. Rule 110: the paper's 4 windows of 24 bits, "
                "slept over, then 4 labels.",
                "A training step: forward, backward, clipping, Muon and AdamW, the same for all; N = 1.",
                "loss_at_end: mean of the last 10 of a hundred steps on the same data, in nats per token.",
                "tokens_per_s and no_optimizer_per_s: in the faster number format; GFLOPS: of forward and backward.",
            ],
        ),
    )


def _measure_shape(shape: Shape, peak: Peak, seconds: float) -> list[Row]:
    batches = [batch_of(shape, recipe_of(shape, "float32"), step) for step in range(4)]
    everyone = {dtype: sides(shape, dtype) for dtype in DTYPES}
    calls = {
        f"{name} {dtype}": partial(_next_step, side, batches, count())
        for dtype, models in everyone.items()
        for name, side in models.items()
    }
    steps = alternate(calls, seconds=seconds / 2)
    faster = {name: min(DTYPES, key=lambda dtype: steps[f"{name} {dtype}"].median) for name in everyone["float32"]}
    chosen = {name: everyone[dtype][name] for name, dtype in faster.items()}
    no_optimizer = alternate(
        {name: partial(side.backward, batches[0]) for name, side in chosen.items()}, seconds=seconds / 2
    )
    return [_row(shape, name, side, steps, no_optimizer[name], batches[0], peak) for name, side in chosen.items()]


def _next_step(side: Side, batches: Sequence[Batch], counter: count[int]) -> float:
    step = next(counter)
    return side.train(batches[step % len(batches)], min(step, side.recipe.train.steps - 1))


def _row(
    shape: Shape,
    name: str,
    side: Side,
    steps: dict[str, Timing],
    no_optimizer: Timing,
    batch: Batch,
    peak: Peak,
) -> Row:
    dtype, tokens = side.recipe.train.dtype, batch.tokens.numel()
    gflops = count_flops(partial(side.backward, batch)) / no_optimizer.median / 1e9
    return {
        "shape": shape.name,
        "batch": shape.batch_size,
        "model": name,
        "faster_in": dtype,
        "tokens_per_s": tokens / steps[f"{name} {dtype}"].median,
        "float32_per_s": tokens / steps[f"{name} float32"].median,
        "bfloat16_per_s": tokens / steps[f"{name} bfloat16"].median,
        "no_optimizer_per_s": tokens / no_optimizer.median,
        "GFLOPS": gflops,
        "%_of_matmul_peak": peak.share(gflops, getattr(torch, dtype)),
    }


def _compare(shape: Shape, rows: Sequence[Row]) -> Row:
    ours, *others = rows

    def ratio(column: str) -> float:
        return number(ours, column) / max(number(row, column) for row in others)

    fastest = max(others, key=lambda row: number(row, "tokens_per_s"))
    return {
        "shape": shape.name,
        "fastest_other": fastest["model"],
        "ratio": ratio("tokens_per_s"),
        "ratio_without_optimizer": ratio("no_optimizer_per_s"),
        "target": TARGET,
    }


def _dtype(row: Row) -> Dtype:
    return "bfloat16" if row["faster_in"] == "bfloat16" else "float32"


def _loss_curves(shape: Shape, dtypes: dict[str, Dtype]) -> list[Row]:
    """By step: every model's loss on the same data, each in its own number format."""
    chosen = {name: sides(shape, dtype)[name] for name, dtype in dtypes.items()}
    rows: list[Row] = []
    for step in range(CURVE_STEPS):
        batch = batch_of(shape, next(iter(chosen.values())).recipe, step)
        rows.append({"step": step + 1, **{name: side.train(batch, step) for name, side in chosen.items()}})
    return rows


def _compare_losses(curves: Sequence[Row]) -> list[Row]:
    """Raises UserError where ours is the worse at the end."""
    rows: list[Row] = []
    for name in (key for key in curves[0] if key != "step"):
        losses = [number(row, name) for row in curves]
        learnt = next((i + 1 for i, loss in enumerate(losses) if loss < LEARNT), None)
        at_end = statistics.fmean(losses[-10:])
        rows.append({"model": name, "loss_at_end": at_end, f"first_step_below_{LEARNT}": learnt})
    ours, *others = rows
    best = min(others, key=lambda row: number(row, "loss_at_end"))
    loss, theirs = number(ours, "loss_at_end"), number(best, "loss_at_end")
    if not loss <= WORSE * theirs:
        raise UserError(
            f"no time is reported: after {len(curves)} steps on the same data our loss is {loss:.3f}, that of "
            f"{best['model']} {theirs:.3f}"
        )
    return rows
