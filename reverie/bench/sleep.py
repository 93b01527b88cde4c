"""`reverie bench sleep`: what N passes cost forward and backward, in units of one ordinary pass over the same text."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from reverie.bench.card import Details, Findings, Row, number
from reverie.bench.check import SEED, random_model, require_equal, require_equal_gradients
from reverie.bench.count import count_flops
from reverie.bench.machine import Peak
from reverie.bench.timer import alternate
from reverie.model import HybridLM, new_model
from reverie.recipe import Recipe, load_recipe
from reverie.results.card import Report
from reverie.sleep import Context, SleepConfig, read, rollout
from reverie.tasks import Batch

PASSES = (1, 2, 4, 8)
HEADLINE = 4  # N
TARGET = 0.9 * HEADLINE  # what is not read is not computed: N passes cost less than N ordinary ones
CHECKED_EXAMPLES = 2
TOLERANCE = 1e-9  # of the largest entry, in float64
NOTES = (
    "plain_passes: the time in units of one plain pass: the same windows, all blocks once, the head and a loss at "
    "every position; plain_passes_counted: the same ratio of the multiplications and additions in matrix products. "
    "Lower is better.",
    "over_N_1: over our own N = 1, which computes less than a plain pass: nobody reads its last block's output where "
    "there is no label.",
    f"The headline is plain_passes at N = {HEADLINE}, its target 0.9 N.",
)


class Shape(NamedTuple):
    """A recipe's model and task, and the examples of a batch."""

    recipe: str
    batch_size: int


SHAPES = (Shape("rule110/base", 64), Shape("depo/nano", 64))


class Runs(NamedTuple):
    """One model and one batch: forward and backward."""

    model: HybridLM
    recipe: Recipe
    batch: Batch

    def asleep(self, passes: int) -> None:
        """One step as training takes it: windows without labels are slept over, labels alone are predicted."""
        logits, _ = rollout(self.model, self.batch.tokens, self.batch.loss_mask, _all_blocks(self.recipe, passes))
        self._backward(logits, self.batch.targets[self.batch.loss_mask])

    def plain(self) -> None:
        """The same windows, each in one pass through all blocks and the head, with a loss at every position."""
        everywhere = torch.ones_like(self.batch.loss_mask)
        logits, _ = rollout(self.model, self.batch.tokens, everywhere, self.recipe.sleep)
        self._backward(logits, self.batch.tokens.roll(-1, dims=1).flatten())

    def _backward(self, logits: Tensor, targets: Tensor) -> None:
        F.cross_entropy(logits, targets).backward()
        self.model.zero_grad()


def _all_blocks(recipe: Recipe, passes: int) -> SleepConfig:
    return recipe.sleep.model_copy(update={"num_sleep_passes": passes, "looped_blocks": None})


def check_shape(shape: Shape) -> None:
    """Raises UserError where N passes give other logits or gradients than `read`, which computes every waking pass
    whole, on the specification's update rule. Labels in the last window alone, so that all others are slept over."""
    recipe = load_recipe(shape.recipe)
    batch = recipe.task.batch("train", SEED, 0, range(CHECKED_EXAMPLES))
    passes, what = _all_blocks(recipe, HEADLINE), f"{shape.recipe}, N = {HEADLINE}"
    mask, last = batch.loss_mask.clone(), (batch.tokens.shape[1] - 1) // passes.window_size
    mask[:, : last * passes.window_size] = False
    specification = recipe.hybrid.model_copy(update={"backend": "reference"})
    model, other = (random_model(config).double() for config in (recipe.hybrid, specification))
    got, _ = rollout(model, batch.tokens, mask, passes)
    wanted = read(other, batch.tokens, Context.empty(other), passes)[0][mask]
    require_equal(got, wanted, TOLERANCE, f"{what}, of the logits the worst")
    for logits in (got, wanted):
        F.cross_entropy(logits, batch.targets[mask]).backward()
    require_equal_gradients(model, other, TOLERANCE, what)


def make_runs(shape: Shape) -> Runs:
    recipe = load_recipe(shape.recipe)
    batch = recipe.task.batch("train", SEED, 0, range(shape.batch_size))
    return Runs(new_model(recipe.hybrid, SEED), recipe, batch)


def measure(
    peak: Peak, report: Report, shapes: Sequence[Shape] = SHAPES, passes: Sequence[int] = PASSES, seconds: float = 60.0
) -> Findings:
    """Times of N passes over all blocks, without optimiser; `HEADLINE` must be among `passes`.

    Raises:
        UserError: a result is wrong; then nothing is timed.
    """
    for i, shape in enumerate(shapes):
        report(i, 2 * len(shapes), f"{shape.recipe}: check")
        check_shape(shape)
    rows: list[Row] = []
    for i, shape in enumerate(shapes, start=len(shapes)):
        report(i, 2 * len(shapes), f"{shape.recipe}: N = {', '.join(map(str, passes))}")
        rows += _measure_shape(shape, passes, peak, seconds)
    return Findings(
        name="sleep",
        ratio=max(number(row, "plain_passes") for row in rows if row["N"] == HEADLINE),
        target=TARGET,
        better="lower",
        details=Details(tables={"forward and backward": rows}, notes=list(NOTES)),
    )


def _measure_shape(shape: Shape, passes: Sequence[int], peak: Peak, seconds: float) -> list[Row]:
    runs = make_runs(shape)
    calls: dict[str, Callable[[], object]] = {str(n): partial(runs.asleep, n) for n in passes}
    calls["plain"] = runs.plain
    times = {name: timing.median for name, timing in alternate(calls, seconds=seconds).items()}
    flops = {name: count_flops(call) for name, call in calls.items()}
    gflops = {name: flops[name] / times[name] / 1e9 for name in calls}
    return [
        {
            "recipe": shape.recipe,
            "batch": shape.batch_size,
            "N": int(n),
            "ms": 1e3 * times[n],
            "tokens_per_s": runs.batch.tokens.numel() / times[n],
            "plain_passes": times[n] / times["plain"],
            "plain_passes_counted": flops[n] / flops["plain"],
            "over_N_1": times[n] / times[str(passes[0])],
            "GFLOPS": gflops[n],
            "%_of_matmul_peak": peak.share(gflops[n]),
        }
        for n in map(str, passes)
    ]
