"""A stage trains its parameters under its eviction, leaves the others alone, and depends on the step alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from same_run import Killed, assert_same_run, kill_at, read_run_card
from tiny_recipe import tiny_recipe
from torch import Tensor

import reverie.train.run
import reverie.train.step
from reverie.errors import UserError
from reverie.model import Eviction, HybridLM, new_model
from reverie.recipe import Recipe
from reverie.results.checkpoint import FILE_NAME, load_checkpoint
from reverie.sleep import SleepConfig
from reverie.train.data import make_batch
from reverie.train.optim import Muon, build_optimizers, lr_factor
from reverie.train.run import train
from reverie.train.schedule import Schedule, Stage
from reverie.train.step import take_step

# The first stage trains all, since behind a head of zeros nothing else gets a gradient.
STAGES = [
    {"share": 2, "parameters": "all", "eviction": "hard"},
    {"share": 3, "parameters": "fast_weights", "eviction": "hard"},
    {"share": 4, "parameters": "all", "eviction": "sliding"},
]
EVICTIONS = ["hard"] * 5 + ["sliding"] * 4  # step by step


def staged(stages: list[dict[str, Any]] = STAGES, **train: Any) -> Recipe:
    return tiny_recipe(
        model={"layers": ["attn", "gdn", "jet"]},
        sleep={"eviction": stages[-1]["eviction"]},
        optim={"weight_decay": 0.1},
        train={"stages": stages, "steps": 9, "checkpoint_every": 1, **train},
    )


# -- which stage a step belongs to


@given(shares=st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=5), steps=st.integers(1, 60))
def test_stages_follow_each_other_in_proportion_to_their_shares(shares: list[float], steps: int):
    try:
        recipe = staged([{**STAGES[0], "share": share} for share in shares], steps=steps)
    except UserError as error:
        assert "is too small for a single one of" in str(error)  # noqa: PT017 (either is right)
        assert any(share * steps <= sum(shares) for share in shares)
        return
    stages = [Schedule.of(recipe).stage(step) for step in range(steps)]
    parts = list(dict.fromkeys(stages))
    assert [part.first for part in parts] == [sum(part.steps for part in parts[:i]) for i in range(len(shares))]
    assert sum(part.steps for part in parts) == steps
    assert all(stage.first <= step < stage.first + stage.steps for step, stage in enumerate(stages))
    for part, share in zip(parts, shares, strict=True):
        assert part.steps == pytest.approx(share / sum(shares) * steps, abs=1.01)


def test_a_recipe_without_stages_is_one_stage_as_it_sleeps():
    recipe = tiny_recipe(sleep={"eviction": "sliding"})
    assert {Schedule.of(recipe).stage(step) for step in range(6)} == {Stage(0, 6, False, recipe.sleep)}


def test_the_data_know_nothing_of_stages():
    plain = tiny_recipe(train={"steps": 9, "curriculum": 0.8})
    for step in range(9):
        ours, theirs = (make_batch(recipe.task, recipe.train, step) for recipe in (staged(curriculum=0.8), plain))
        pairs = zip(ours, theirs, strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


# -- what trains


def names_of_fast_weights(model: HybridLM) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(("layers.1.mixer.", "layers.2.mixer."))}


def test_fast_weight_parameters_are_those_of_the_mixers():
    model = new_model(staged().hybrid, 0)
    found = {id(parameter) for parameter in model.fast_weight_parameters()}
    assert found == {id(model.get_parameter(name)) for name in names_of_fast_weights(model)}
    assert found
    assert new_model(tiny_recipe(model={"layers": ["attn"]}).hybrid, 0).fast_weight_parameters() == []


@pytest.mark.parametrize("before", [0, 2])
def test_a_stage_frees_what_another_one_froze(before: int):
    recipe, model = staged(), new_model(staged().hybrid, 0)
    Schedule.of(recipe).freeze_others(model, before)
    Schedule.of(recipe).freeze_others(model, 2)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == names_of_fast_weights(model)
    Schedule.of(recipe).freeze_others(model, 8)
    assert all(parameter.requires_grad for parameter in model.parameters())


def snapshot(model: HybridLM, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Every parameter and all that the optimisers know of it, by the name of the parameter and of the entry."""
    tensors = {f"{name}:": parameter for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                tensors |= {f"{name}:{entry}": tensor for entry, tensor in optimizer.state.get(parameter, {}).items()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def test_a_step_moves_its_parameters_and_leaves_no_trace_on_the_others():
    """Neither on their values, by weight decay say, nor in the optimisers."""
    recipe, model = staged(), new_model(staged().hybrid, 0)
    optimizers = build_optimizers(model, recipe.optim)
    before = snapshot(model, optimizers)
    for step in range(9):
        take_step(Schedule.of(recipe), model, optimizers, step, make_batch(recipe.task, recipe.train, step))
        after = snapshot(model, optimizers)
        moved = {key for key in after if key not in before or not torch.equal(before[key], after[key])}
        names = {key.split(":")[0] for key in moved}
        if 2 <= step < 5:
            assert names == names_of_fast_weights(model)
        elif step >= 5:
            assert names == dict(model.named_parameters()).keys()
        before = after


def test_no_gradient_is_computed_for_the_others(monkeypatch: pytest.MonkeyPatch):
    with_gradient: list[set[str]] = []
    recipe, model = staged(), new_model(staged().hybrid, 0)
    total_norm = torch.nn.utils.get_total_norm

    def watch(gradients: list[Tensor]) -> Tensor:
        with_gradient.append({name for name, parameter in model.named_parameters() if parameter.grad is not None})
        return total_norm(gradients)

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", watch)
    optimizers = build_optimizers(model, recipe.optim)
    for step in range(9):
        take_step(Schedule.of(recipe), model, optimizers, step, make_batch(recipe.task, recipe.train, step))
    every = set(dict(model.named_parameters()))
    assert with_gradient == [every] * 2 + [names_of_fast_weights(model)] * 3 + [every] * 4


# -- how it trains


def test_every_stage_has_its_own_course_of_the_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rates: list[float] = []
    step = Muon.step

    def watch(self: Muon, *arguments: Any) -> Any:
        rates.extend(group["lr"] for group in self.param_groups)
        return step(self, *arguments)

    monkeypatch.setattr(Muon, "step", watch)
    recipe = staged()
    train(recipe, tmp_path)
    assert rates == [1e-2 * lr_factor(recipe.optim, step, length) for length in (2, 3, 4) for step in range(length)]


@contextmanager
def watched(module: ModuleType, function: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Eviction]]:
    """The evictions that a function is called with from a module."""
    called, seen = getattr(module, function), []

    def watch(*arguments: Any, **options: Any) -> Any:
        seen.extend(argument.eviction for argument in arguments if isinstance(argument, SleepConfig))
        return called(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, function, watch)
        yield seen


def test_training_and_curve_have_the_eviction_of_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = staged(eval_every=1)
    with (
        watched(reverie.train.step, "rollout_hidden", monkeypatch) as rollouts,
        watched(reverie.train.run, "evaluate", monkeypatch) as evaluations,
    ):
        card = train(recipe, tmp_path)
    assert rollouts == EVICTIONS
    assert evaluations == [*EVICTIONS, "sliding"]  # the last is the final score
    assert card.score == card.curve[-1].score


# -- breaks


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train(staged(), out := tmp_path_factory.mktemp("undisturbed"))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3, 5, 9])
def test_a_break_inside_a_stage_or_at_its_edge_changes_nothing(tmp_path: Path, step: int, undisturbed: Path):
    with pytest.raises(Killed):
        train(staged(), tmp_path, report=kill_at(step))
    assert load_checkpoint(tmp_path / FILE_NAME).progress.step == step
    train(staged(), tmp_path, resume=True)
    assert_same_run(tmp_path, undisturbed)


def test_the_first_steps_of_a_stage_may_be_done_twice(tmp_path: Path):
    """Broken off in the last stage, resumed from a checkpoint in the one before."""
    recipe = staged(checkpoint_every=4)
    with pytest.raises(Killed):
        train(recipe, tmp_path / "run", report=kill_at(7))
    train(recipe, tmp_path / "run", resume=True)
    train(recipe, tmp_path / "undisturbed")
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed")


def test_a_run_that_begins_with_the_fast_weights_has_no_optimiser_state_of_the_others(tmp_path: Path):
    recipe = staged(STAGES[1:], steps=7)
    with pytest.raises(Killed):
        train(recipe, tmp_path / "a", report=kill_at(2))
    checkpoint = load_checkpoint(tmp_path / "a" / FILE_NAME)
    states = [name.split(".", 2)[2] for name in checkpoint.tensors if name.startswith("optimizer.")]
    model = new_model(recipe.hybrid, 0)
    fast = names_of_fast_weights(model)
    assert {name for name in fast if any(state.startswith(f"{name}.") for state in states)} == fast
    assert all(state.rpartition(".")[0] in fast for state in states)
    train(recipe, tmp_path / "a", resume=True)
    train(recipe, tmp_path / "b")
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_card_keeps_the_stages(undisturbed: Path):
    assert Recipe.model_validate(read_run_card(undisturbed).recipe) == staged()
