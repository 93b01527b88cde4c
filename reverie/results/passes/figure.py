"""The figure of a passes card, from the card alone: accuracy over N, and over the passes that adaptive sleep spends."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator

from reverie.results.card import METRIC_NAMES
from reverie.results.passes.card import PassesCard, Regime, trained_range
from reverie.results.style import CHANCE, draw_panels, look_of, look_of_settings

_RANDOM = (("#0f766e", "v"), ("#6d5a9e", "P"), ("#8a6d1f", "X"))  # regimes with a random N have no colour of their own
_LABEL: dict[str, Any] = {"fontsize": 7, "zorder": 2.5}
_BAND_HEIGHT = 0.025  # of the bars that say which N a regime was trained with, in heights of the panel


def draw_passes(card: PassesCard) -> Figure:
    """Accuracy over N, a line for each regime; beside it, if the card has tolerances, accuracy over passes spent.

    Shaded: from the lowest to the highest seed.
    """
    seeds = max(len(regime.seeds) for regime in card.regimes)
    note = f"mean of {seeds} seeds" if seeds > 1 else f"seed {card.regimes[0].seeds[0]}"
    panels = [_over_numbers, _over_passes] if card.tolerances else [_over_numbers]
    drawing = draw_panels(f"{card.name}  ({note})", METRIC_NAMES[card.metric], card, panels)
    drawing.draw_without_rendering()  # which finds the places of texts
    for axes in drawing.axes:
        _set_apart(axes)
    return drawing


def _finish(axes: Axes, card: PassesCard, least: float) -> None:
    """Draw chance, and scale the axis of passes from `least` on."""
    axes.axhline(card.metric_chance, **CHANCE)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    axes.set_xlim(least - 0.4, card.num_sleep_passes[-1] + 0.4)


def _random(card: PassesCard) -> list[Regime]:
    """The regimes with a random N."""
    return [regime for regime in card.regimes if not isinstance(regime.trained_with, int)]


def _look(card: PassesCard, regime: Regime) -> tuple[str, str]:
    """Colour and marker."""
    if any(other.settings for other in card.regimes):  # N alone would not tell them apart
        return look_of_settings(card.regimes.index(regime), len(card.regimes))
    if isinstance(regime.trained_with, int):
        return look_of(regime.trained_with)
    return _RANDOM[_random(card).index(regime) % len(_RANDOM)]


def _over_numbers(axes: Axes, card: PassesCard) -> None:
    number, seeds = len(_random(card)), max(len(regime.seeds) for regime in card.regimes)
    marks = ["ring"] * (number < len(card.regimes)) + ["bar"] * (number > 0)
    axes.set_title(f"N for all ({', '.join(marks)}: as trained{'; shaded: seeds' if seeds > 1 else ''})")
    axes.set_xlabel("sleep passes N")
    for regime in card.regimes:
        colour, marker = _look(card, regime)
        accuracies = [result.accuracy for result in regime.fixed]
        low, high = [part.low for part in accuracies], [part.high for part in accuracies]
        axes.fill_between(card.num_sleep_passes, low, high, color=colour, alpha=0.15, linewidth=0)
        means = [part.mean for part in accuracies]
        line: dict[str, Any] = {"color": colour, "marker": marker, "label": f"trained with {regime.label}"}
        axes.plot(card.num_sleep_passes, means, clip_on=False, **line)
        _mark_training(axes, card, regime, colour)
    _finish(axes, card, card.num_sleep_passes[0])


def _mark_training(axes: Axes, card: PassesCard, regime: Regime, colour: str) -> None:
    """Draw a ring around the N of training, or a bar along the bottom over a random N's range."""
    low, high = trained_range(regime.trained_with)
    if isinstance(regime.trained_with, int):
        ring: dict[str, Any] = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "color": colour}
        for result in regime.fixed:
            if result.num_sleep_passes == low:
                axes.plot([low], [result.accuracy.mean], gid="trained", clip_on=False, **ring)
        return
    shown = max(low, card.num_sleep_passes[0]), min(high, card.num_sleep_passes[-1])
    if shown[0] <= shown[1]:
        bottom = _random(card).index(regime) * 1.4 * _BAND_HEIGHT
        axes.axvspan(
            shown[0] - 0.3, shown[1] + 0.3, bottom, bottom + _BAND_HEIGHT, color=colour, alpha=0.35, lw=0, gid="trained"
        )


def _over_passes(axes: Axes, card: PassesCard) -> None:
    axes.set_title("adaptive sleep (hollow, with its tolerance) beside it")
    axes.set_xlabel("passes spent on a window, on average")
    least = float(card.num_sleep_passes[0])
    for row, regime in enumerate(card.regimes):
        colour, marker = _look(card, regime)
        fixed = [result.accuracy.mean for result in regime.fixed]
        axes.plot(card.num_sleep_passes, fixed, color=colour, marker=".", alpha=0.5, gid="fixed")
        for result in regime.adaptive if len(regime.seeds) > 1 else []:
            axes.plot(result.passes.values, result.accuracy.values, ".", color=colour, alpha=0.5, gid="seeds")
        hollow: dict[str, Any] = {"marker": marker, "markerfacecolor": "white", "markersize": 6, "color": colour}
        points = [(result.passes.mean, result.accuracy.mean) for result in regime.adaptive]
        axes.plot(*zip(*points, strict=True), ":", linewidth=1.1, gid="adaptive", clip_on=False, zorder=3, **hollow)
        for place, text in _labels(points, [result.tolerance for result in regime.adaptive]):
            # Regimes may lie on each other, so that each has its own height; many rather have them beside their points.
            offset = (0, -12 - 10 * row) if len(card.regimes) < 4 else (14, 2)
            label = axes.annotate(text, place, offset, textcoords="offset points", ha="center", **_LABEL, color=colour)
            label.set_path_effects([withStroke(linewidth=2, foreground="white")])
        least = min([least, *(passes for passes, _ in points)])
    _finish(axes, card, least)


def _set_apart(axes: Axes) -> None:
    """Move labels that lie on another one down, until none does."""
    placed = list[Any]()
    for label in axes.texts:
        assert isinstance(label, Annotation)
        while any(label.get_window_extent().padded(4).overlaps(other) for other in placed):
            x, y = label.xyann
            label.xyann = (x, y - 3)
        placed.append(label.get_window_extent())


def _labels(
    points: Sequence[tuple[float, float]], tolerances: Sequence[float]
) -> list[tuple[tuple[float, float], str]]:
    """Tolerances, and where to write them: for neighbours the first and the last, else they would lie on each other."""
    groups: list[list[tuple[tuple[float, float], float]]] = []
    for point, tolerance in zip(points, tolerances, strict=True):
        last = groups[-1][-1][0] if groups else (math.inf, math.inf)
        if abs(point[0] - last[0]) >= 0.4 or abs(point[1] - last[1]) >= 0.06:
            groups.append([])
        groups[-1].append((point, tolerance))
    names = [dict.fromkeys(f"{group[i][1]:g}" for i in (0, -1)) for group in groups]
    return [(group[0][0], " – ".join(name)) for group, name in zip(groups, names, strict=True)]
