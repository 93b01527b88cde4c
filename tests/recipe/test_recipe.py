"""Recipes: bases and overrides merge as documented, and what ships loads and says what it is to say."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from recipe_files import FULL, STAGED, write

from reverie.recipe import OptimizerConfig, Recipe, TrainConfig, changed, list_recipes, load_recipe


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipes_load_and_survive_a_card(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.model.vocab_size == recipe.task.vocab_size
    card = json.dumps(recipe.model_dump(mode="json"))
    assert Recipe.model_validate(json.loads(card)) == recipe


def test_recipes_of_the_paper_have_its_numbers() -> None:
    deep, depo = load_recipe("rule110/paper-t32"), load_recipe("depo/paper")
    assert deep.train.steps * deep.train.batch_size * deep.task.sequence_length == pytest.approx(5e9, rel=1e-3)
    shallow = load_recipe("rule110/paper-depth")
    assert shallow.train.steps * shallow.train.batch_size * shallow.task.sequence_length == pytest.approx(4e7, rel=1e-3)
    assert (deep.task.sequence_length, deep.sleep.window_size) == (100, 24)
    assert (depo.task.sequence_length, depo.sleep.window_size, depo.train.steps) == (360, 75, 100_000)
    assert len(depo.hybrid.layers) == 10


@pytest.mark.parametrize("name", list_recipes())
def test_recipes_state_no_default(name: str) -> None:
    """What equals the default of its config class, or the value of the base, is noise in a recipe."""
    data = tomllib.loads((Path(__file__).parents[2] / "recipes" / f"{name}.toml").read_text(encoding="utf-8"))
    recipe = load_recipe(name)
    base = load_recipe(data["base"]) if "base" in data else None
    for section in data.keys() - {"base"}:
        config: BaseModel = getattr(recipe, section)
        for key in data[section].keys() - {"name"}:
            value = getattr(config, key)
            if base:
                assert value != getattr(getattr(base, section), key), f"{section}.{key}"
            else:
                assert value != type(config).model_fields[key].default, f"{section}.{key}"


def test_a_base_gives_what_the_recipe_leaves_out(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        top='base = "middle.toml"\n[train]\nsteps = 30',
        middle='base = "bottom.toml"\n[train]\nsteps = 20\nbatch_size = 8\n[task]\nrollout_steps = [1, 8]',
        bottom=FULL,
    )
    recipe = load_recipe(path)
    assert recipe.name == "top"
    assert (recipe.train.steps, recipe.train.batch_size) == (30, 8)
    assert recipe.model_dump()["task"]["rollout_steps"] == (1, 8)
    assert recipe.hybrid.width == 16
    assert recipe.model.vocab_size == 3 + 8


def test_a_base_may_be_a_shipped_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, mine='base = "rule110/base"\n[train]\nsteps = 3')
    mine, base = load_recipe(str(path)), load_recipe("rule110/base")
    assert mine == base.model_copy(update={"name": "mine", "train": mine.train})
    assert mine.train == base.train.model_copy(update={"steps": 3})


def test_a_base_is_found_from_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, full=FULL)
    assert load_recipe(write(tmp_path / "sub", top='base = "../full.toml"')).train.steps == 10


@pytest.mark.parametrize(
    ("override", "section", "expected"),
    [
        ("sleep.eviction=sliding", "sleep", {"eviction": "sliding"}),
        ('sleep.eviction="sliding"', "sleep", {"eviction": "sliding"}),
        (" sleep.num_sleep_passes = 4 ", "sleep", {"num_sleep_passes": 4}),
        ("sleep.looped_blocks=[1,3]", "sleep", {"looped_blocks": (1, 3)}),
        ("sleep={window_size=7, num_sleep_passes=2}", "sleep", {"window_size": 7, "num_sleep_passes": 2}),
        ("task.rollout_steps=[1,8]", "task", {"rollout_steps": (1, 8)}),
        ("task.held_out_fraction=0.5", "task", {"held_out_fraction": 0.5}),
        ("optim.matrices.lr=1", "optim", {"matrices": OptimizerConfig(name="muon", lr=1.0)}),
        ("optim.muon_lr=1", "optim", {"matrices": OptimizerConfig(name="muon", lr=1.0)}),
        ("train.steps=1_000", "train", {"steps": 1000}),
    ],
)
def test_an_override_changes_its_keys_alone(override: str, section: str, expected: dict[str, object]) -> None:
    before, after = load_recipe("rule110/base"), load_recipe("rule110/base", [override])
    assert getattr(after, section) == getattr(before, section).model_copy(update=expected)
    assert after.model.vocab_size == after.task.vocab_size
    others = {"name", "sleep", "optim", "train"} - {section}
    assert after.model_dump(include=others) == before.model_dump(include=others)


train_values = st.fixed_dictionaries({}, optional={key: st.integers(1, 9) for key in ("steps", "batch_size", "seed")})


@given(bottom=train_values, top=train_values, overrides=st.lists(train_values, max_size=3))
@settings(max_examples=25, deadline=None)
def test_later_wins(
    tmp_path_factory: pytest.TempPathFactory,
    bottom: dict[str, int],
    top: dict[str, int],
    overrides: list[dict[str, int]],
) -> None:
    def table(values: dict[str, int]) -> str:
        return "[train]\n" + "\n".join(f"{key} = {value}" for key, value in values.items())

    path = write(
        tmp_path_factory.mktemp("recipes"),
        top='base = "middle.toml"\n' + table(top),
        middle='base = "bottom.toml"\n' + table(bottom),
        bottom=FULL,
    )
    sets = [f"train.{key}={value}" for values in overrides for key, value in values.items()]
    expected: dict[str, int] = {"steps": 10, "batch_size": 4}
    for values in (bottom, top, *overrides):
        expected |= values
    assert load_recipe(path, sets).train == TrainConfig.model_validate(expected)


def test_stages_divide_the_steps_and_survive_a_card(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, staged=STAGED))
    assert [stage.parameters for stage in recipe.train.stages] == ["fast_weights", "all"]
    assert recipe.train.stage_ends == [3, 9]
    assert Recipe.model_validate(json.loads(recipe.model_dump_json())) == recipe
    assert changed(recipe, train={"steps": 12}).train.stage_ends == [4, 12]
    assert load_recipe("rule110/base").train.stage_ends == [load_recipe("rule110/base").train.steps]


def test_stages_are_replaced_as_a_whole(tmp_path: Path) -> None:
    base = write(tmp_path, top='base = "staged.toml"\n[train]\nstages = []', staged=STAGED)
    assert load_recipe(base).train.stages == ()
