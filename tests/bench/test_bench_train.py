"""A training step beside others: the worst shape counts, and no time is reported where ours learns worse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_benchmark import PEAK, Parts, clock, one_round
from test_bench_sides import TINY
from torch import nn
from torch.optim import Optimizer

from reverie.bench import sides as bench_sides
from reverie.bench import train
from reverie.bench.card import number
from reverie.bench.sides import OURS, WINDOW, OurSide, Shape, Side, recipe_of
from reverie.bench.train import COMPILED, PRODUCTS, RIVAL, measure
from reverie.errors import UserError
from reverie.model import LanguageModel
from reverie.recipe import Recipe
from reverie.tasks import Batch
from reverie.train.schedule import Schedule

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes minutes, and cannot see through annotations that are checked."""
    for side in (Side, OurSide):
        monkeypatch.setattr(side, "compile", lambda self: None)


def test_a_shape_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "alternate", one_round)
    monkeypatch.setattr(train, "CURVE_STEPS", 2)
    parts = Parts()
    findings = measure(PEAK, parts, shapes=[TINY])
    parts.assert_whole()
    tables = findings.details.tables
    others = ["OlmoHybrid", "Qwen3Next"]
    speed = tables["tokens per second"]
    assert [row["model"] for row in speed] == [f"{name}{way}" for name in (OURS, *others) for way in ("", COMPILED)]
    assert all(number(row, "tokens_per_s") > 0 and number(row, "GFLOPS") > 0 for row in speed)
    assert findings.ratio == pytest.approx(number(tables["targets"][0], "ratio"), rel=1e-4)
    assert findings.better == "higher"
    losses = tables["loss on the same data"]
    assert [row["model"] for row in losses] == [OURS, f"{OURS}{COMPILED}", *others]


def test_a_step_of_ours_that_is_wrong_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs uphill; what transformers' models do is right."""
    right = bench_sides.take_step

    def uphill(schedule: Schedule, model: LanguageModel, optimizers: list[Optimizer], *rest: Any) -> Any:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["peak"] = -10 * group.setdefault("right", group["peak"])
        return right(schedule, model, optimizers, *rest)

    monkeypatch.setattr(bench_sides, "take_step", uphill)
    monkeypatch.setattr(train, "CURVE_STEPS", 8)
    curves = train._loss_curves(TINY)
    with pytest.raises(UserError, match="after 8 steps on the same data the loss of reverie"):
        train._compare_losses(TINY, curves)


class Invented(Side):
    """Multiplies two matrices, and says what loss it has come to: in the end this one."""

    def __init__(self, recipe: Recipe, end: float) -> None:
        self.recipe, self.end, self.model = recipe, end, nn.Linear(2, 2)

    def backward(self, batch: Batch) -> None:
        torch.mm(torch.ones(2, 2), torch.ones(2, 2))

    def train(self, batch: Batch, step: int) -> float:
        return self.end + 4 / (step + 1)


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`measure` over models that compute nothing, with seconds a step by name and losses at the end of training."""

    def run(losses: dict[str, float], *times: dict[str, float]) -> Any:
        def fake_sides(shape: Shape) -> dict[str, Side]:
            return {name: Invented(recipe_of(shape), end) for name, end in losses.items()}

        clocks = iter([clock(one) for one in times for _ in range(2)])  # steps, without optimisers
        monkeypatch.setattr(train, "sides", fake_sides)
        monkeypatch.setattr(train, "alternate", lambda calls, **rest: next(clocks)(calls, **rest))
        return measure(PEAK, Parts(), shapes=[TINY, TINY][: len(times)])

    return run


ALIKE = {OURS: 1.0, RIVAL: 1.0, "B": 1.0}
TIMES = {OURS: 0.1, f"{OURS}{COMPILED}": 0.2, RIVAL: 0.4, f"{RIVAL}{COMPILED}": 0.3, "B": 0.6, f"B{COMPILED}": 0.5}
TIMES |= {PRODUCTS: 0.05}


def test_the_fastest_other_counts(invented: Callable[..., Any]) -> None:
    findings = invented(ALIKE, TIMES)
    speed = {row["model"]: row for row in findings.details.tables["tokens per second"]}
    assert number(speed[OURS], "tokens_per_s") == pytest.approx(2 * WINDOW / 0.1)
    [row] = findings.details.tables["steps"]
    assert row["fastest_other"] == f"{RIVAL}{COMPILED}"
    assert number(row, "over_fastest") == pytest.approx(3.0)
    assert number(row, "ours_compiled") == pytest.approx(2.0)
    assert number(row, "both_eager") == pytest.approx(4.0)
    assert number(row, "both_compiled") == pytest.approx(1.5)


def test_the_targets(invented: Callable[..., Any]) -> None:
    """Four times as fast as the rival; twice the time of products, which counts in a wide model."""
    findings = invented(ALIKE, TIMES)
    over_rival, over_products = findings.details.tables["targets"]
    assert number(over_rival, "speed") == pytest.approx(4.0)
    assert number(over_rival, "ratio") == pytest.approx(4.0 / number(over_rival, "ratio_of_operations"))
    assert findings.ratio == pytest.approx(number(over_rival, "ratio"))
    assert number(over_products, "ratio") == pytest.approx(2.0)
    assert "target" not in over_products


def test_the_headline_is_the_worst_shape(invented: Callable[..., Any]) -> None:
    findings = invented(ALIKE, TIMES, TIMES | {RIVAL: 0.05})
    assert findings.ratio == pytest.approx(0.5)
    assert not findings.reached


@pytest.mark.parametrize(("ours", "reported"), [(0.9, True), (1.02, True), (1.1, False), (float("nan"), False)])
def test_no_time_where_ours_learns_worse(invented: Callable[..., Any], ours: float, reported: bool) -> None:
    losses = {OURS: ours, RIVAL: 1.2, "B": 1.0}
    if reported:
        assert invented(losses, TIMES).details.tables["loss on the same data"][0]["model"] == OURS
    else:
        with pytest.raises(UserError, match=r"after 100 steps on the same data the loss of reverie.* is .*, that of B"):
            invented(losses, TIMES)


def test_what_is_timed_of_ours_has_a_loss_curve(invented: Callable[..., Any]) -> None:
    """Compiled too: it is what the headline may be of."""
    findings = invented(ALIKE, TIMES)
    timed = {str(row["model"]) for row in findings.details.tables["tokens per second"]}
    learnt = {row["model"] for row in findings.details.tables["loss on the same data"]}
    assert {name for name in timed if name.startswith(OURS)} <= learnt
