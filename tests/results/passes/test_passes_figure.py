"""The figure of a passes card draws what the card holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_cards import passes_card
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from texts_apart import assert_texts_apart

from reverie.recipe.random_passes import RandomPasses
from reverie.results.card import read_card, save_card
from reverie.results.passes.card import PassesCard
from reverie.results.passes.figure import draw_passes
from reverie.results.plots import plot_cards

UNIFORM = RandomPasses(distribution="uniform", mean=4, max=7)
POISSON = RandomPasses(distribution="poisson", mean=4, max=16)


@pytest.fixture(scope="module")
def card() -> PassesCard:
    return passes_card([2, UNIFORM, POISSON])


def lines(axes: Axes, gid: str | None = None) -> list[Line2D]:
    return [line for line in axes.get_lines() if line.get_gid() == gid]


def ys(line: Line2D) -> list[float]:
    return [float(y) for y in line.get_ydata()]  # type: ignore[union-attr]


def xs(line: Line2D) -> list[float]:
    return [float(x) for x in line.get_xdata()]  # type: ignore[union-attr]


def test_accuracy_over_n_by_regime(card: PassesCard):
    left, _ = draw_passes(card).axes
    drawn = {str(line.get_label()): line for line in lines(left)}
    assert list(drawn) == [*(f"trained with {regime.label}" for regime in card.regimes), "chance"]
    for regime in card.regimes:
        line = drawn[f"trained with {regime.label}"]
        assert xs(line) == card.num_sleep_passes
        assert ys(line) == [result.accuracy.mean for result in regime.fixed]
    assert ys(drawn["chance"]) == [0.25, 0.25]
    assert len({str(line.get_color()) for line in drawn.values()}) == 4


def test_bands_go_from_the_lowest_to_the_highest_seed(card: PassesCard):
    left, _ = draw_passes(card).axes
    for regime, band in zip(card.regimes, left.collections, strict=True):
        box = band.get_paths()[0].get_extents()
        accuracies = [result.accuracy for result in regime.fixed]
        assert (box.ymin, box.ymax) == pytest.approx((min(a.low for a in accuracies), max(a.high for a in accuracies)))


def test_what_training_had_is_marked(card: PassesCard):
    left, _ = draw_passes(card).axes
    (ring,) = lines(left, "trained")
    assert (xs(ring), ys(ring)) == ([2], [card.regimes[0].fixed[1].accuracy.mean])
    bars = [patch.get_extents().transformed(left.transData.inverted()) for patch in left.patches]
    assert [(bar.xmin, bar.xmax) for bar in bars] == [pytest.approx((0.7, 7.3)), pytest.approx((0.7, 8.3))]
    (alone,) = draw_passes(passes_card([2], numbers=[4, 8], tolerances=[])).axes
    assert lines(alone, "trained") == []  # it was not evaluated at that N


def test_adaptive_sleep_lies_beside_the_fixed_curve(card: PassesCard):
    _, right = draw_passes(card).axes
    for regime, fixed, adaptive in zip(card.regimes, lines(right, "fixed"), lines(right, "adaptive"), strict=True):
        assert xs(fixed) == card.num_sleep_passes
        assert xs(adaptive) == [result.passes.mean for result in regime.adaptive]
        assert ys(adaptive) == [result.accuracy.mean for result in regime.adaptive]
        assert adaptive.get_color() == fixed.get_color()
    assert len(lines(right, "seeds")) == 3 * 2
    assert [text.get_text() for text in right.texts] == ["0.5", "0.1"] * 3


def test_tolerances_that_spend_the_same_share_a_label():
    _, right = draw_passes(passes_card([UNIFORM], tolerances=[0.5, 0.03, 0.02, 0.01])).axes
    assert [text.get_text() for text in right.texts] == ["0.5", "0.03 – 0.01"]


def test_one_n_alone_shows_what_adaptive_sleep_spends():
    _, right = draw_passes(passes_card([UNIFORM], seeds=1, numbers=[8], tolerances=[0.9, 0.1])).axes
    assert right.get_xlim()[0] < min(xs(lines(right, "adaptive")[0]))


def test_it_is_drawn_from_a_file(card: PassesCard, tmp_path: Path):
    save_card(card, tmp_path / "any-n.json")
    assert plot_cards([tmp_path / "any-n.json"]) == [tmp_path / "any-n.png"]
    assert (tmp_path / "any-n.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("path", [None, Path(__file__).parents[3] / "results" / "depo" / "any-n.json"])
def test_tolerances_can_be_read(card: PassesCard, path: Path | None) -> None:
    assert_texts_apart(draw_passes(card if path is None else read_card(path, {"passes": PassesCard})))
