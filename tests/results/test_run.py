"""A card describes its run, and a run on disk can be evaluated again, also with other numbers of passes."""

from __future__ import annotations

from pathlib import Path

import pytest
from same_run import read_run_card
from tiny_recipe import tiny_recipe

from reverie.errors import UserError
from reverie.model import HybridLM
from reverie.recipe import Recipe
from reverie.results.checkpoint import FILE_NAME, load_checkpoint
from reverie.results.evaluate import evaluate
from reverie.results.run import CARD_NAME, evaluate_run, model_kind
from reverie.train.run import train

RECIPE = tiny_recipe()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(RECIPE, folder)
    return folder


def test_a_run_leaves_a_card_that_describes_it(run: Path):
    card = read_run_card(run)
    assert (card.name, card.model, card.num_sleep_passes, card.seed) == ("tiny", "sleep", 2, 0)
    assert Recipe.model_validate(card.recipe) == RECIPE
    assert (card.steps, card.tokens) == (6, 6 * 8 * 16)
    assert card.score == card.curve[-1].score
    assert card.score["examples"] == 24
    assert card.depths == ["1", "2", "3", "4"]
    assert set(card.depths) <= card.chance.by_depth.keys()
    assert sorted(path.name for path in run.iterdir()) == [CARD_NAME, FILE_NAME, "tensorboard"]
    model = HybridLM(RECIPE.hybrid)
    load_checkpoint(run / FILE_NAME).restore_model(model)
    assert card.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("layers", "passes", "kind"), [(["attn"], 1, "transformer"), (["attn", "gdn"], 1, "hybrid"), (["jet"], 2, "sleep")]
)
def test_models_are_called_what_the_field_calls_them(layers: list[str], passes: int, kind: str):
    recipe = tiny_recipe(model={"layers": layers}, sleep={"num_sleep_passes": passes})
    assert model_kind(recipe) == kind


# -- of a run on disk


def test_a_run_scores_as_it_did_when_it_was_trained(run: Path):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    card = evaluate_run(run)
    assert card.score == card.curve[-1].score
    assert card.steps == 6
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("passes", "kind"), [(1, "hybrid"), (2, "sleep"), (4, "sleep")])
def test_a_run_can_sleep_more_or_less_than_it_was_trained_to(run: Path, passes: int, kind: str):
    card = evaluate_run(run, num_sleep_passes=passes)
    assert (card.num_sleep_passes, card.model) == (passes, kind)
    model = HybridLM(RECIPE.hybrid)
    load_checkpoint(run / FILE_NAME).restore_model(model)
    sleep = RECIPE.sleep.model_copy(update={"num_sleep_passes": passes})
    assert card.score == evaluate(model, RECIPE.task, sleep, RECIPE.train.eval_examples).score.summary()
    if passes != 2:
        assert card.score["loss"] != card.curve[-1].score["loss"]


@pytest.mark.parametrize("passes", [0, -3])
def test_less_than_one_pass_is_refused(run: Path, passes: int):
    with pytest.raises(UserError, match=rf"num_sleep_passes must be at least 1, got {passes}$"):
        evaluate_run(run, num_sleep_passes=passes)


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"^there is no run at .*: give the folder that reverie train wrote"):
            evaluate_run(folder)
    assert list(tmp_path.iterdir()) == []
