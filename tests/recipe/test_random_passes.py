"""Random numbers of passes: their mean, their bound, and that a step alone decides them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_recipe import tiny_recipe

from reverie.errors import UserError
from reverie.recipe import Recipe, changed
from reverie.recipe.random_passes import RandomPasses
from reverie.train.schedule import Schedule

DISTRIBUTIONS = ("uniform", "poisson", "lognormal_poisson")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_mean_is_what_was_asked_and_nothing_is_below_one(distribution: Any):
    passes = RandomPasses(distribution=distribution, mean=3.5, max=1000)
    drawn = [passes.draw(7, step) for step in range(4000)]
    assert sum(drawn) / len(drawn) == pytest.approx(3.5, abs=0.15)
    assert min(drawn) == 1


def test_a_uniform_number_takes_every_value_alike():
    drawn = [RandomPasses(distribution="uniform", mean=2, max=3).draw(0, step) for step in range(3000)]
    assert [drawn.count(n) / 3000 for n in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.04)


@given(
    distribution=st.sampled_from(DISTRIBUTIONS),
    mean=st.integers(1, 8),
    room=st.integers(0, 4),
    seed=st.integers(0, 2**32 - 1),
    step=st.integers(0, 10**9),
)
def test_it_stays_within_its_bounds_and_depends_on_seed_and_step(
    distribution: Any, mean: int, room: int, seed: int, step: int
):
    passes = RandomPasses(distribution=distribution, mean=mean, max=mean + room)
    n = passes.draw(seed, step)
    assert 1 <= n <= mean + room
    assert passes.draw(seed, step) == n


def any_n(**passes: Any) -> Recipe:
    table = {"distribution": "poisson", "mean": 2.6, "max": 5, **passes}
    return tiny_recipe(sleep={"num_sleep_passes": table})


def test_a_recipe_trains_with_random_passes_and_sleeps_with_their_mean():
    recipe = any_n()
    assert recipe.sleep.num_sleep_passes == 3
    assert {Schedule.of(recipe).sleep_at(step).num_sleep_passes for step in range(50)} == {1, 2, 3, 4, 5}
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    fixed = changed(recipe, train={"num_sleep_passes": None})
    assert {Schedule.of(fixed).sleep_at(step).num_sleep_passes for step in range(50)} == {3}


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ({"mean": 0}, "sleep.num_sleep_passes.mean must be at least 1, got 0"),
        ({"mean": 6}, "sleep.num_sleep_passes has a mean of 6, which must not be above its max 5"),
        ({"distribution": "normal"}, "sleep.num_sleep_passes.distribution must be "),
        ({"maxx": 3}, "sleep.num_sleep_passes.maxx is not a known key; did you mean sleep.num_sleep_passes.max?"),
        ({"distribution": "uniform"}, "sleep.num_sleep_passes has a mean of 2.6, which of uniform numbers"),
    ],
)
def test_a_wrong_table_is_one_sentence(passes: dict[str, Any], message: str):
    with pytest.raises(UserError) as caught:
        any_n(**passes)
    assert str(caught.value).startswith(message)
