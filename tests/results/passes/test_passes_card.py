"""Regimes sum up their runs, and passes saved are counted on the fixed curve of the same seed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from fake_cards import passes_card
from hypothesis import given
from hypothesis import strategies as st

from reverie.recipe.random_passes import RandomPasses
from reverie.results.card import read_card, save_card
from reverie.results.passes.card import OverSeeds, PassesCard, passes_to_reach, regime_label, trained_range

UNIFORM = RandomPasses(distribution="uniform", mean=4, max=7)
POISSON = RandomPasses(distribution="poisson", mean=4, max=16)


@pytest.mark.parametrize(
    ("accuracy", "passes", "reached"),
    [
        (0.1, 1.0, True),
        (0.2, 1.0, True),
        (0.3, 1.5, True),
        (0.4, 2.0, True),
        (0.6, 2 + 2 * 0.2 / 0.5, True),
        (0.9, 4.0, True),
        (0.91, 4.0, False),
    ],
)
def test_passes_to_reach(accuracy: float, passes: float, reached: bool):
    found = passes_to_reach(accuracy, [1, 2, 4, 8], [0.2, 0.4, 0.9, 0.7])
    assert found == (pytest.approx(passes), reached)


def test_of_equally_good_numbers_the_smallest_counts():
    assert passes_to_reach(1.0, [1, 2, 3], [0.1, 0.8, 0.8]) == (2.0, False)
    assert passes_to_reach(0.5, [3], [0.5]) == (3.0, True)
    assert passes_to_reach(0.6, [3], [0.5]) == (3.0, False)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1))
def test_fewer_passes_are_less_accurate(curve: list[float], accuracy: float):
    """At the number found the curve is where it must be, and before that below."""
    numbers = [2 * n + 1 for n in range(len(curve))]
    passes, reached = passes_to_reach(accuracy, numbers, curve)
    assert all(a < accuracy for n, a in zip(numbers, curve, strict=True) if n < passes) or not reached
    assert reached == (max(curve) >= accuracy)
    if passes in numbers:
        assert not reached or curve[numbers.index(int(passes))] >= accuracy - 1e-12  # the place is rounded too
    else:
        i = int(passes - 1) // 2
        share = (passes - numbers[i]) / 2
        assert curve[i] + share * (curve[i + 1] - curve[i]) == pytest.approx(accuracy)


@pytest.mark.parametrize("passes", [UNIFORM, POISSON, RandomPasses(distribution="uniform", mean=2.5, max=9)])
def test_the_trained_range_holds_what_training_draws(passes: RandomPasses):
    low, high = trained_range(passes)
    drawn = {passes.draw(0, step) for step in range(3000)}
    assert (low, high) == (1, high)
    assert drawn <= set(range(low, high + 1))
    if passes.distribution == "uniform":
        assert drawn == set(range(low, high + 1))


def test_labels():
    assert regime_label(4) == "N = 4"
    assert regime_label(UNIFORM) == "random N, 1 to 7"
    assert regime_label(POISSON) == "random N, poisson, mean 4, up to 16"


def test_a_regime_sums_up_its_seeds():
    card = passes_card([2, UNIFORM])
    assert [regime.trained_with for regime in card.regimes] == [2, UNIFORM]
    for regime in card.regimes:
        runs = [run for run in card.runs if run.trained_with == regime.trained_with]
        assert [run.seed for run in runs] == regime.seeds == [0, 1, 2]
        for i, result in enumerate(regime.fixed):
            values = [run.fixed[i].score["by_depth"]["4"]["accuracy"] for run in runs]  # the metric is the deepest
            assert result.accuracy == OverSeeds.of(values)
            assert result.accuracy.low == min(values) <= result.accuracy.mean <= max(values) == result.accuracy.high


def test_what_adaptive_sleep_saves_is_measured_seed_by_seed():
    (regime,) = passes_card([UNIFORM]).regimes
    for i, result in enumerate(regime.adaptive):
        for seed, run in enumerate(passes_card([UNIFORM]).runs):
            point = run.adaptive[i]
            curve = [one.score["by_depth"]["4"]["accuracy"] for one in run.fixed]
            equal, reached = passes_to_reach(point.score["by_depth"]["4"]["accuracy"], range(1, 9), curve)
            assert result.passes.values[seed] == point.mean_passes
            assert result.share_saved.values[seed] == pytest.approx(1 - point.mean_passes / 8)
            assert (result.equal_passes.values[seed], result.reached[seed]) == (equal, reached)
            assert result.saved.values[seed] == pytest.approx(equal - point.mean_passes)


def test_more_passes_than_needed_save_less_than_nothing():
    """This regime is best at N = 2, and adaptive sleep goes on far beyond."""
    (regime,) = passes_card([2]).regimes
    assert all(result.saved.high < 0 for result in regime.adaptive)
    assert all(result.share_saved.low > 0 for result in regime.adaptive)


def test_a_card_is_read_as_it_was_saved(tmp_path: Path):
    card = passes_card([2, UNIFORM, POISSON])
    save_card(card, tmp_path / "card.json")
    read = read_card(tmp_path / "card.json", {"passes": PassesCard})
    assert [regime.trained_with for regime in read.regimes] == [2, UNIFORM, POISSON]
    save_card(read, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "card.json").read_bytes()
    assert math.isclose(read.regimes[0].adaptive[0].saved.mean, card.regimes[0].adaptive[0].saved.mean, rel_tol=1e-4)
