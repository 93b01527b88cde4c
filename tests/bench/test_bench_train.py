"""A training step beside others: the same work on all sides, the same data, and no time where ours learns worse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_benchmark import PEAK, Parts, clock, one_round
from torch import Tensor, nn

from reverie.bench import train
from reverie.bench.card import number
from reverie.bench.train import OURS, SHAPES, Dtype, Shape, Side, batch_of, measure, recipe_of, sides
from reverie.errors import UserError
from reverie.model import new_model
from reverie.recipe import Recipe
from reverie.sleep import rollout

TINY = Shape("tiny", "depo/nano", 2)
TINY_RULE110 = Shape("tiny, Rule 110", "rule110/nano", 2, rule110=True)


def test_a_shape_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "alternate", one_round)
    monkeypatch.setattr(train, "CURVE_STEPS", 3)
    parts = Parts()
    findings = measure(PEAK, parts, shapes=[TINY, TINY_RULE110])
    parts.assert_in_order()
    speed = findings.details.tables["tokens per second"]
    models = [OURS, "OlmoHybrid", "Qwen3Next"]
    assert [row["model"] for row in speed] == models * 2
    assert all(number(row, "tokens_per_s") > 0 and number(row, "GFLOPS") > 0 for row in speed)
    [losses] = findings.details.curves.values()
    assert [row["step"] for row in losses] == [1, 2, 3]
    assert all(set(row) == {"step", *models} for row in losses)


@pytest.mark.parametrize("shape", [TINY, TINY_RULE110])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_sides_do_the_same_step(monkeypatch: pytest.MonkeyPatch, shape: Shape, dtype: Dtype) -> None:
    """The step around transformers' models, put around ours, is ours: loss, clipping, learning rates and optimisers."""
    recipe = recipe_of(shape, dtype)
    model = new_model(recipe.model, train.SEED)

    def our_logits(model: Any, tokens: Tensor, loss_mask: Tensor, window_size: int) -> Tensor:
        return rollout(model, tokens, loss_mask, recipe.sleep)[0]

    monkeypatch.setattr(train, "transformers_hybrids", lambda config, seed: {"same": model})
    monkeypatch.setattr(train, "transformers_logits", our_logits)
    everyone = sides(shape, dtype)
    for step in range(3):
        losses = [side.train(batch_of(shape, recipe, step), step) for side in everyone.values()]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for ours, theirs in zip(everyone[OURS].model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_recipes_differ_in_nothing_but_size() -> None:
    for shape in SHAPES:
        recipe = recipe_of(shape, "float32")
        assert recipe.sleep.num_sleep_passes == 1
        assert len(recipe.model.layers) == 4
        assert recipe.model.width == int(shape.name.split(",")[0].removeprefix("d "))
        assert recipe.train.batch_size == shape.batch_size
        assert recipe.train.backward.activation_checkpoint == "none"


def test_a_text_asks_for_every_next_symbol() -> None:
    recipe = recipe_of(TINY, "float32")
    batch = batch_of(TINY, recipe, 7)
    assert batch.loss_mask.all()
    assert torch.equal(batch.targets[:, :-1], batch.tokens[:, 1:])
    assert torch.equal(batch.tokens[:, train.PERIOD :], batch.tokens[:, : -train.PERIOD])
    assert torch.equal(batch.tokens, batch_of(TINY, recipe, 7).tokens)
    assert not torch.equal(batch.tokens, batch_of(TINY, recipe, 8).tokens)


def test_rule_110_has_its_labels_behind_four_windows() -> None:
    shape = SHAPES[-1]
    recipe = recipe_of(shape, "float32")
    batch = batch_of(shape, recipe, 0)
    windows = batch.loss_mask.split(recipe.sleep.window_size, dim=1)
    assert [int(window.sum()) for window in windows] == [0, 0, 0, 0, 4 * shape.batch_size]


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`measure` over models that compute nothing, with step times by name and losses at the end of training."""

    def run(losses: dict[str, float], *times: dict[str, float]) -> Any:
        def fake_sides(shape: Shape, dtype: Dtype) -> dict[str, Side]:
            recipe = recipe_of(shape, dtype)
            return {
                name: Side(recipe, nn.Identity(), lambda batch, step, end=end: end + 4 / (step + 1), lambda batch: None)
                for name, end in losses.items()
            }

        def both(one: dict[str, float]) -> dict[str, float]:
            return one | {name.split()[0]: seconds for name, seconds in one.items()}

        clocks = iter([clock(both(one)) for one in times for _ in range(2)])
        monkeypatch.setattr(train, "sides", fake_sides)
        monkeypatch.setattr(train, "alternate", lambda calls, **rest: next(clocks)(calls, **rest))
        return measure(PEAK, Parts(), shapes=[TINY, TINY_RULE110][: len(times)])

    return run


TIMES = {
    f"{OURS} float32": 0.2,
    f"{OURS} bfloat16": 0.1,
    "A float32": 0.4,
    "A bfloat16": 0.5,
    "B float32": 0.7,
    "B bfloat16": 0.6,
}


def test_each_in_its_faster_number_format_and_the_fastest_other_counts(invented: Callable[..., Any]) -> None:
    findings = invented({OURS: 1.0, "A": 1.0, "B": 1.0}, TIMES)
    speed = findings.details.tables["tokens per second"]
    assert [row["faster_in"] for row in speed] == ["bfloat16", "float32", "bfloat16"]
    assert number(speed[0], "tokens_per_s") == pytest.approx(2 * train.WINDOW / 0.1)
    assert findings.details.tables["ours over the fastest other"][0]["fastest_other"] == "A"
    assert findings.ratio == pytest.approx(4.0)
    assert findings.reached


def test_the_headline_is_the_worst_shape(invented: Callable[..., Any]) -> None:
    findings = invented({OURS: 1.0, "A": 1.0, "B": 1.0}, TIMES, TIMES | {"B bfloat16": 0.15})
    assert findings.ratio == pytest.approx(1.5)
    assert not findings.reached


@pytest.mark.parametrize(("ours", "reported"), [(0.9, True), (1.02, True), (1.1, False), (float("nan"), False)])
def test_no_time_where_ours_learns_worse(invented: Callable[..., Any], ours: float, reported: bool) -> None:
    losses = {OURS: ours, "A": 1.2, "B": 1.0}
    if reported:
        assert invented(losses, TIMES).details.tables["loss on the same data"][0]["model"] == OURS
    else:
        with pytest.raises(UserError, match=r"after 100 steps on the same data our loss is .*, that of B 1\.04"):
            invented(losses, TIMES)


def test_a_step_of_ours_that_is_wrong_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs uphill; what transformers' models do is right."""
    right = train.train_step

    def uphill(recipe: Recipe, *rest: Any) -> Any:
        rates = {"muon_lr": -10 * recipe.optim.muon_lr, "adamw_lr": -10 * recipe.optim.adamw_lr}
        return right(recipe.model_copy(update={"optim": recipe.optim.model_copy(update=rates)}), *rest)

    monkeypatch.setattr(train, "alternate", one_round)
    monkeypatch.setattr(train, "CURVE_STEPS", 8)
    monkeypatch.setattr(train, "train_step", uphill)
    with pytest.raises(UserError, match="after 8 steps on the same data our loss is"):
        measure(PEAK, Parts(), shapes=[TINY])
