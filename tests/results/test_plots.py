"""Figures draw what their cards hold."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib
import pytest
from fake_cards import comparison
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from reverie.errors import UserError
from reverie.results.card import ComparisonCard, save_card
from reverie.results.plots import figure, plot_cards, save_figure

NAMES = ["transformer", "N = 1 (hybrid)", "N = 2 (sleep)", "N = 4 (sleep)"]


@pytest.fixture(scope="module")
def card() -> ComparisonCard:
    return comparison(points=5)


def labelled(axes: Axes) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in axes.get_lines() if not str(line.get_label()).startswith("_")}


def ys(line: Line2D) -> list[float]:
    return [float(y) for y in line.get_ydata()]  # type: ignore[union-attr]


def test_one_line_for_each_model_over_depth(card: ComparisonCard):
    axes, _ = figure(card).axes
    lines = labelled(axes)
    assert list(lines) == [*NAMES, "chance"]
    for result in card.results:
        assert ys(lines[result.label]) == [result.by_depth[depth].mean for depth in card.depths]
    assert ys(lines["chance"]) == pytest.approx([1 / 74] * 6)
    assert axes.get_xlabel() == "hops k"
    assert axes.get_ylim()[0] == 0
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["16", "12", "8", "4", "2", "1"]


def test_bands_and_dots_hold_every_seed(card: ComparisonCard):
    axes, _ = figure(card).axes
    band = axes.collections[2].get_paths()[0].get_extents()
    values = [value for part in card.results[2].by_depth.values() for value in part.values]
    assert (band.ymin, band.ymax) == pytest.approx((min(values), max(values)))
    dots = [y for line in axes.get_lines() if line.get_gid() == "seeds" for y in ys(line)]
    assert len(dots) == 4 * 6 * 3


def test_one_mean_and_each_seed_over_tokens(card: ComparisonCard):
    """At 12 hops, where N = 1 and N = 4 of this card differ most."""
    _, axes = figure(card).axes
    lines = labelled(axes)
    assert list(lines) == [*NAMES, "chance"]
    runs = card.runs_of(card.results[3])
    last = sum(run.curve[-1].score["by_depth"]["12"]["accuracy"] for run in runs) / 3
    assert ys(lines["N = 4 (sleep)"])[-1] == pytest.approx(last)
    assert list(lines["transformer"].get_xdata()) == pytest.approx([4.608e6 * i for i in range(6)])  # type: ignore[arg-type]
    assert axes.get_xlabel() == "training tokens"
    assert sum(line.get_gid() == "seeds" for line in axes.get_lines()) == 12


def test_the_mean_stops_where_a_seed_stops(card: ComparisonCard):
    short = [run.model_copy(update={"curve": run.curve[:3]}) if run.seed == 1 else run for run in card.runs]
    _, axes = figure(card.model_copy(update={"runs": short})).axes
    assert len(ys(labelled(axes)["N = 2 (sleep)"])) == 3


def test_one_depth_shows_the_metric_of_the_card():
    card = comparison(points=5, depths=(32,))
    left, right = figure(card).axes
    assert left.get_ylabel() == "exact accuracy"
    for result in card.results:
        assert ys(labelled(left)[result.label]) == [result.accuracy]
        means = [sum(run.curve[i].score["exact_accuracy"] for run in card.runs_of(result)) / 3 for i in range(6)]
        assert ys(labelled(right)[result.label]) == pytest.approx(means)
    assert ys(labelled(left)["chance"]) == [0.5**4] * 2


def test_a_run_has_the_same_two_panels(card: ComparisonCard):
    run = card.runs[-1]
    left, right = figure(run).axes
    assert list(labelled(left)) == list(labelled(right)) == ["N = 4 (sleep)", "chance"]
    assert ys(labelled(left)["N = 4 (sleep)"]) == [run.score["by_depth"][depth]["accuracy"] for depth in run.depths]


def test_a_run_without_a_curve_can_be_drawn(card: ComparisonCard, tmp_path: Path):
    save_figure(figure(card.runs[0].model_copy(update={"curve": []})), tmp_path / "run.png")
    assert (tmp_path / "run.png").exists()


def test_a_number_of_passes_has_the_same_colour_in_every_figure(card: ComparisonCard):
    (of_all, _), (of_one, _) = (figure(c).axes for c in (card, card.runs[-1]))
    colours = [line.get_color() for line in labelled(of_all).values()]
    assert len(set(map(str, colours))) == 5
    assert labelled(of_one)["N = 4 (sleep)"].get_color() == colours[3]


def test_drawing_leaves_matplotlib_as_it_was(card: ComparisonCard):
    before = dict(matplotlib.rcParams)
    figure(card)
    assert dict(matplotlib.rcParams) == before


def test_cards_are_drawn_beside_themselves_or_into_a_folder(card: ComparisonCard, tmp_path: Path):
    save_card(card, tmp_path / "a.json")
    save_card(card.runs[0], tmp_path / "b.json")
    assert plot_cards([tmp_path / "a.json"]) == [tmp_path / "a.png"]
    drawn = plot_cards([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "out")
    assert drawn == [tmp_path / "out" / "a.png", tmp_path / "out" / "b.png"]
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "b.png"]
    assert drawn[0].read_bytes() == (tmp_path / "a.png").read_bytes()  # the same card, the same bytes
    assert drawn[0].read_bytes().startswith(b"\x89PNG")


def test_two_cards_of_one_name_do_not_overwrite_each_other(card: ComparisonCard, tmp_path: Path):
    for folder in ("x", "y"):
        save_card(card.runs[0], tmp_path / folder / "a.json")
    with pytest.raises(UserError, match="two cards would be drawn to"):
        plot_cards([tmp_path / "x" / "a.json", tmp_path / "y" / "a.json"], tmp_path)
