"""A run that diverges ends in one sentence, which names step and place, and leaves its last good state."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from same_run import assert_same_run
from tiny_recipe import tiny_recipe

from reverie.errors import UserError
from reverie.model import LanguageModel
from reverie.recipe import Recipe
from reverie.results.checkpoint import FILE_NAME, Progress, load_checkpoint
from reverie.results.run import CARD_NAME
from reverie.train import run
from reverie.train import step as step_module
from reverie.train.run import train
from reverie.train.step import Step

Undisturbed = Callable[[Recipe], Path]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The folder of a run by that recipe, trained without a break; the same run for the same recipe."""
    runs: dict[str, Path] = {}

    def run(recipe: Recipe) -> Path:
        key = recipe.model_dump_json()
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("undisturbed")
            train(recipe, runs[key])
        return runs[key]

    return run


@pytest.fixture
def the_model(monkeypatch: pytest.MonkeyPatch) -> list[LanguageModel]:
    """The models that runs make, newest last."""
    models: list[LanguageModel] = []
    make = run.build_model

    def keep(*arguments: Any) -> LanguageModel:
        models.append(make(*arguments))
        return models[-1]

    monkeypatch.setattr(run, "build_model", keep)
    return models


def assert_good_and_resumable(out: Path, step: int, undisturbed: Path) -> None:
    """The checkpoint is finite, from that step, and goes on as if nothing had been."""
    checkpoint = load_checkpoint(out / FILE_NAME)
    assert checkpoint.progress.step == step
    assert all(tensor.isfinite().all() for name, tensor in checkpoint.tensors.items() if name != "rng")
    assert not (out / CARD_NAME).exists()
    train(checkpoint.recipe, out, resume=True)
    assert_same_run(out, undisturbed)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_step_and_parameter(
    tmp_path: Path, the_model: list[LanguageModel], value: float, undisturbed: Undisturbed
):
    def poison(progress: Progress, loss: float) -> None:
        if progress.step == 5:
            with torch.no_grad():
                the_model[-1].get_parameter("layers.1.mlp.out_proj.weight")[0, 0] = value

    expected = (
        r"training diverged at step 6 \(the loss is nan, and the parameter layers\.1\.mlp\.out_proj\.weight is not "
        rf"finite\): {re.escape(str(tmp_path))}/{FILE_NAME} keeps the last good state, try a lower optim\.matrices\.lr "
        r"than 0\.01 and another folder"
    )
    with pytest.raises(UserError, match=f"^{expected}$"):
        train(tiny_recipe(), tmp_path, report=poison)
    assert_good_and_resumable(tmp_path, 4, undisturbed(tiny_recipe()))


def test_a_gradient_that_is_not_finite_reaches_no_parameter(
    tmp_path: Path, the_model: list[LanguageModel], undisturbed: Undisturbed
):
    def poison(progress: Progress, loss: float) -> None:
        if progress.step == 5:
            parameter = the_model[-1].get_parameter("layers.0.mlp.in_proj.weight")
            parameter.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([1]), math.inf))

    recipe = tiny_recipe(train={"checkpoint_every": 1})
    with pytest.raises(UserError, match=r"step 6 \(the loss is \d\.\d+, and the gradient of layers\.0\.mlp\.in_proj"):
        train(recipe, tmp_path, report=poison)
    assert all(parameter.isfinite().all() for parameter in the_model[0].parameters())
    assert_good_and_resumable(tmp_path, 5, undisturbed(recipe))


def test_weights_that_are_not_finite_are_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Undisturbed
):
    take_step = step_module.take_step

    def overshoot(plan: Any, model: LanguageModel, rules: Any, step: int, *others: Any, **options: Any) -> Step:
        taken = take_step(plan, model, rules, step, *others, **options)
        if step == 3:
            with torch.no_grad():
                model.get_parameter("embedding.weight")[0, 0] = math.inf
        return taken

    with monkeypatch.context() as patch:
        patch.setattr(step_module, "take_step", overshoot)
        with pytest.raises(UserError, match=r"diverged at step 4 \(the parameter embedding\.weight is not finite\)"):
            train(tiny_recipe(), tmp_path)
    assert_good_and_resumable(tmp_path, 2, undisturbed(tiny_recipe()))


def test_a_learning_rate_that_is_far_too_high_diverges_in_one_sentence(tmp_path: Path):
    recipe = tiny_recipe(optim={"matrices": {"lr": 1e38}, "rest": {"lr": 1e38}})
    advice = r"try a lower optim\.matrices\.lr than 1e\+38 and another folder"
    with pytest.raises(UserError, match=rf"^training diverged at step \d+ .* {advice}$"):
        train(recipe, tmp_path)
    load_checkpoint(tmp_path / FILE_NAME)
