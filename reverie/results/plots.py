"""Figures from result cards alone: of runs and comparisons here, of other kinds by what `plot_cards` is given."""

import math
import os
import re
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullLocator

from reverie.errors import UserError
from reverie.files import write_atomic
from reverie.results.card import (
    METRIC_NAMES,
    Card,
    ComparisonCard,
    CurvePoint,
    Part,
    Result,
    RunCard,
    depth_name,
    headline,
    read_card,
)
from reverie.results.comparison import compare_runs, usual_metric
from reverie.results.passes.card import PassesCard
from reverie.results.passes.figure import draw_passes
from reverie.results.style import CHANCE, GREY, STYLE, draw_panels, look_of, look_of_settings

Kind = tuple[type[Part], Callable[[Any], Figure]]
"""How a card of one kind is read and drawn."""

_DPI = 150
_LETTERS_BELOW = 64  # of the names of columns, beside each other
_LINES = ("-", "--", ":", "-.")


def figure(card: Card) -> Figure:
    """Accuracy after training over depth, and during training over tokens: a line for each model and N."""
    if isinstance(card, RunCard):
        card = compare_runs(card.name, usual_metric(card), [card])
    y_label = METRIC_NAMES[card.metric] if len(card.depths) == 1 else "accuracy per question"
    name = f"{card.name}, {card.one_model}" if card.one_model else card.name
    return draw_panels(f"{name}  ({_seed_note(card)})", y_label, card, [_over_depth, _over_tokens])


def save_figure(drawing: Figure, path: str | os.PathLike[str]) -> None:
    """Write a PNG in one move."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box in the figure shows it
        write_atomic(path, lambda file: drawing.savefig(file, format="png", dpi=_DPI, metadata={"Software": None}))


KINDS: dict[str, Kind] = {
    "run": (RunCard, figure),
    "comparison": (ComparisonCard, figure),
    "passes": (PassesCard, draw_passes),
}


def plot_cards(paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None) -> list[Path]:
    """Draw each card, which must be of one of `KINDS`, to a PNG of the same name.

    Args:
        out: the folder of the figures; None draws each beside its card.
    """
    cards = [Path(path) for path in paths]
    images = [(card.parent if out is None else Path(out)) / f"{card.stem}.png" for card in cards]
    if twice := next((image for image in images if images.count(image) > 1), None):
        raise UserError(f"two cards would be drawn to {twice}; plot them into different folders")
    draw = dict(KINDS.values())
    for path, image in zip(cards, images, strict=True):
        card = read_card(path, {name: kind for name, (kind, _) in KINDS.items()})
        save_figure(draw[type(card)](card), image)
    return images


def _seed_note(card: ComparisonCard) -> str:
    counts = {len(result.seeds) for result in card.results}
    if counts == {1}:
        return f"seed {', '.join(map(str, card.seeds))}"
    return f"mean of {counts.pop()} seeds" if len(counts) == 1 else "means over seeds"


def _title(card: ComparisonCard, title: str, spread: str) -> str:
    """The panel's title, with a note on how the seeds are shown if there are several."""
    return f"{title} ({spread})" if len(card.seeds) > 1 else title


def _over_depth(axes: Axes, card: ComparisonCard) -> None:
    if len(card.depths) == 1:
        return _over_models(axes, card)
    axes.set_title(_title(card, "after training", "shaded: seeds"))
    axes.set_xlabel(depth_name(card.recipe))
    depths = [float(depth) for depth in card.depths]
    for result in card.results:
        colour, marker, line = _look(card, result)
        values = [result.by_depth[depth].values for depth in card.depths]
        axes.fill_between(depths, [*map(min, values)], [*map(max, values)], color=colour, alpha=0.15, linewidth=0)
        for depth, at_depth in zip(depths, values, strict=True):
            axes.plot([depth] * len(at_depth), at_depth, ".", color=colour, alpha=0.35, markersize=3, gid="seeds")
        means = [result.by_depth[depth].mean for depth in card.depths]
        axes.plot(depths, means, line, color=colour, marker=marker, label=card.label_of(result), clip_on=False)
    axes.plot(depths, [card.chance.by_depth[depth] for depth in card.depths], **CHANCE)
    _scale_depths(axes, depths)


def _scale_depths(axes: Axes, depths: Sequence[float]) -> None:
    """Scale the axis, by logarithm for powers of two, with ticks at depths that were asked and at the deepest."""
    if len(depths) > 2 and all(depth >= 1 and math.log2(depth).is_integer() for depth in depths):
        axes.set_xscale("log", base=2)
    ticks = depths[:: -math.ceil(len(depths) / 8)]
    axes.set_xticks(ticks, [f"{depth:g}" for depth in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _telling_depth(card: ComparisonCard) -> str:
    """The depth at which the best and the worst number of passes differ most; the deepest if there is only one."""
    hybrids = [result.by_depth for result in card.results if result.model != "transformer"]
    means = {depth: [parts[depth].mean for parts in hybrids] for depth in card.depths}
    return max(reversed(card.depths), key=lambda depth: max(means[depth], default=0) - min(means[depth], default=0))


def _name_columns(axes: Axes, names: Sequence[str]) -> None:
    """Write names under columns if there is room for them beside each other; else the legend has them."""
    names = [re.sub(r" (?=\()|(?<= =)(?<!N =) |(?<=,) ", "\n", name) for name in names]
    room = sum(max(map(len, name.split("\n"))) for name in names) <= _LETTERS_BELOW
    axes.set_xticks(range(len(names)), names if room else [""] * len(names))


def _over_models(axes: Axes, card: ComparisonCard) -> None:
    """Draw a column for each model and number of passes: its mean, and each seed."""
    axes.set_title(_title(card, f"after training, {depth_name(card.recipe)} = {card.depths[0]}", "shaded: seeds"))
    _name_columns(axes, [card.label_of(result) for result in card.results])
    axes.set_xlim(-0.5, len(card.results) - 0.5)
    for column, result in enumerate(card.results):
        colour, marker, _ = _look(card, result)
        values = result.accuracies
        axes.vlines(column, min(values), max(values), colors=colour, alpha=0.25, linewidth=7, capstyle="butt")
        axes.plot([column] * len(values), values, ".", color=colour, alpha=0.6, markersize=4, gid="seeds")
        label = card.label_of(result)
        axes.plot([column], [result.accuracy], color=colour, marker=marker, markersize=6, label=label)
    axes.axhline(card.results[0].chance, **CHANCE)


def _over_tokens(axes: Axes, card: ComparisonCard) -> None:
    single, depth = len(card.depths) == 1, _telling_depth(card)
    axes.set_title(_title(card, f"during training, {depth_name(card.recipe)} = {depth}", "thin: seeds"))

    def accuracy(point: CurvePoint) -> float:
        return headline(point.score, card.metric) if single else point.score["by_depth"][depth]["accuracy"]

    for result in card.results:
        colour, _, line = _look(card, result)
        curves = [{point.tokens: accuracy(point) for point in run.curve} for run in card.runs_of(result)]
        for curve in curves if len(curves) > 1 else []:
            axes.plot([*curve], [*curve.values()], color=colour, alpha=0.35, linewidth=0.7, gid="seeds")
        tokens = sorted(set.intersection(*map(set, curves)))
        means = [statistics.fmean(curve[count] for curve in curves) for count in tokens]
        axes.plot(tokens, means, line, color=colour, label=card.label_of(result), clip_on=False)
    axes.axhline(card.results[0].chance if single else card.chance.by_depth[depth], **CHANCE)
    axes.set_xlabel("training tokens")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)


def _look(card: ComparisonCard, result: Result) -> tuple[str, str, str]:
    """Colour, marker and line: of N, or where there are settings colours are theirs and lines those of N.

    The transformer is grey.
    """
    settings = list(dict.fromkeys(tuple(other.settings.items()) for other in card.results if other.settings))
    passes = sorted({other.num_sleep_passes for other in card.results if other.model != "transformer"})
    place = settings.index(tuple(result.settings.items())) if result.settings else 0
    if result.model == "transformer":
        return GREY, "o", _LINES[place % len(_LINES)]
    if not settings:
        return *look_of(result.num_sleep_passes), "-"
    colour, marker = look_of_settings(place, len(settings))
    return colour, marker, _LINES[passes.index(result.num_sleep_passes) % len(_LINES)]
