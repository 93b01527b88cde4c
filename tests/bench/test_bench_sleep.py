"""What N passes cost: right first, then timed, and the headline is the worst shape at N = 4."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_benchmark import PEAK, Parts, clock, never, one_round
from torch import Tensor

from reverie.bench import sleep
from reverie.bench.card import number
from reverie.bench.count import count_flops
from reverie.bench.sleep import HEADLINE, TARGET, Shape, check_shape, make_runs, measure
from reverie.errors import UserError
from reverie.ops import dispatch

pytestmark = pytest.mark.slow

TINY = Shape("depo/nano", 2)
rollout = sleep.rollout


def test_a_shape_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleep, "alternate", one_round)
    parts = Parts()
    findings = measure(PEAK, parts, shapes=[TINY], passes=(1, 2, 4), seconds=0.0)
    parts.assert_whole()
    [rows] = findings.details.tables.values()
    assert [row["N"] for row in rows] == [1, 2, 4]
    assert findings.ratio == pytest.approx(rows[-1]["plain_passes"], rel=1e-4)
    assert findings.better == "lower"
    assert findings.target == TARGET == pytest.approx(0.9 * HEADLINE)
    counted = [number(row, "plain_passes_counted") for row in rows]
    assert counted == sorted(counted)
    assert all(row["GFLOPS"] > 0 and row["tokens_per_s"] > 0 for row in rows)  # type: ignore[operator]


def test_the_headline_is_the_worst_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"plain": 1.0, "1": 0.8, "4": 3.0}
    worse = times | {"4": 3.7}
    clocks = iter([clock(worse), clock(times)])
    monkeypatch.setattr(sleep, "alternate", lambda calls, **rest: next(clocks)(calls, **rest))
    findings = measure(PEAK, Parts(), shapes=[TINY, Shape("rule110/nano", 2)], passes=(1, 4))
    assert findings.ratio == pytest.approx(3.7)
    assert not findings.reached
    rows = findings.details.tables["forward and backward"]
    assert [row["recipe"] for row in rows] == ["depo/nano"] * 2 + ["rule110/nano"] * 2
    assert [row["N"] for row in rows] == [1, 4, 1, 4]
    assert rows[1]["over_N_1"] == pytest.approx(3.7 / 0.8)


@pytest.mark.parametrize("recipe", ["depo/nano", "rule110/nano"])
def test_the_passes_are_right(recipe: str) -> None:
    check_shape(Shape(recipe, 2))


def wrong_logits(*arguments: Any, **options: Any) -> tuple[Tensor, Any]:
    logits, context = rollout(*arguments, **options)
    return logits * (1 + 1e-6), context


def wrong_gradients(*arguments: Any, **options: Any) -> tuple[Tensor, Any]:
    logits, context = rollout(*arguments, **options)
    return logits.detach() + (logits - logits.detach()) * (1 + 1e-6), context


@pytest.mark.parametrize(("wrong", "what"), [(wrong_logits, "of the logits"), (wrong_gradients, "the gradient of")])
def test_a_wrong_step_is_not_timed(monkeypatch: pytest.MonkeyPatch, wrong: Any, what: str) -> None:
    monkeypatch.setattr(sleep, "rollout", wrong)
    monkeypatch.setattr(sleep, "alternate", never)
    with pytest.raises(UserError, match=rf"^nothing is measured: depo/nano, N = 4, {what} .* is off by"):
        measure(PEAK, Parts(), shapes=[TINY])


def test_a_wrong_rule_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = dispatch._RECURRENCES["chunked"]

    def wrong(*arguments: Any, **options: Any) -> tuple[Tensor | None, Tensor]:
        o, state = right(*arguments, **options)
        return o, state * (1 + 1e-6)

    monkeypatch.setitem(dispatch._RECURRENCES, "chunked", wrong)
    monkeypatch.setattr(sleep, "alternate", never)
    with pytest.raises(UserError, match="is off by"):
        measure(PEAK, Parts(), shapes=[TINY])


def test_what_is_compared() -> None:
    """Of a sleeping step less is computed than of N ordinary ones, and of N = 1 less than of one."""
    runs = make_runs(TINY)
    plain, one, four = (count_flops(call) for call in (runs.plain, lambda: runs.asleep(1), lambda: runs.asleep(4)))
    assert one < plain < four < 4 * plain
    assert all(p.grad is None for p in runs.model.parameters())  # nothing is carried into the next round


def test_a_plain_pass_predicts_every_next_token(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, seen = make_runs(TINY), []

    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        seen.append((logits, targets))
        return logits.sum()

    monkeypatch.setattr(sleep.F, "cross_entropy", cross_entropy)
    runs.plain()
    [(logits, targets)] = seen
    assert logits.shape[0] == runs.batch.tokens.numel()
    assert torch.equal(targets.view(runs.batch.tokens.shape)[:, :-1], runs.batch.tokens[:, 1:])


def test_all_blocks_loop_whatever_the_recipe_says() -> None:
    recipe = sleep.load_recipe("depo/nano", ["sleep.looped_blocks=[1,2]"])
    config = sleep._all_blocks(recipe, 3)
    assert (config.num_sleep_passes, config.looped_blocks) == (3, None)
    assert config.window_size == recipe.sleep.window_size
