"""What of an adapter's recipe fits into a time."""

from __future__ import annotations

from pathlib import Path

import pytest
from reading_pages import needs_smollm2
from tiny_adapter import tiny_adapter, tiny_base

from reverie.recipe import Recipe, changed
from reverie.train.budget import Costs, chosen_before, fitted, measured
from reverie.train.run import train

pytestmark = [pytest.mark.hf, needs_smollm2]

COSTS = Costs(beginning=20, page=4, address=2, step=5, evaluation=10, finish=60)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    base = tiny_base(tmp_path_factory.mktemp("base") / "llama")
    return changed(tiny_adapter(base), train={"steps": 3000}, adapt={"pool": 3000})


@pytest.mark.parametrize("seconds", [600, 1800, 3600, 20_000])
def test_it_is_the_largest_share_that_fits(recipe: Recipe, seconds: float) -> None:
    chosen = fitted(recipe, seconds, COSTS)
    assert chosen["adapt.pool"] == chosen["train.steps"]  # as in the recipe
    assert COSTS.of(recipe, chosen) <= 0.9 * seconds
    more = {**chosen, "train.steps": chosen["train.steps"] + 4, "adapt.pool": chosen["adapt.pool"] + 4}
    assert COSTS.of(recipe, more) > 0.9 * seconds


def test_no_more_than_the_recipe_and_no_less_than_a_step(recipe: Recipe) -> None:
    assert fitted(recipe, 1e9, COSTS) == {"train.steps": 3000, "train.eval_every": 600, "adapt.pool": 3000}
    assert fitted(recipe, 1, COSTS)["train.steps"] == 3


@pytest.mark.slow
def test_a_run_takes_as_long_as_was_planned(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVERIE_CACHE", str(tmp_path / "cache"))
    costs = measured(recipe)
    assert min(vars(costs).values()) > 0
    chosen = fitted(recipe, 15.0, costs)
    assert 3 < chosen["train.steps"] < 3000
    settings = {"steps": chosen["train.steps"], "eval_every": chosen["train.eval_every"], "checkpoint_every": 1000}
    card = train(changed(recipe, train=settings, adapt={"pool": chosen["adapt.pool"]}), tmp_path / "run")
    assert card.wall_time_s < 30
    assert chosen_before(tmp_path / "run") == chosen
