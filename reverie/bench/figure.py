"""The figure of a benchmark card, from the card alone."""

from __future__ import annotations

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from reverie.bench.card import BenchmarkCard, Panel, Row
from reverie.bench.tables import verdict
from reverie.results.style import STYLE

_COLOURS = ("#c2410c", "#1d4e89", "#7aa6c2", "#8c8c8c", "#5b8c5a", "#b8860b")  # ours, or what counts, comes first
_MARKERS = ("o", "s", "^", "D", "v")

Line = tuple[list[str | float], list[float]]
"""x and y of its points."""


@matplotlib.rc_context(STYLE)
def draw(card: BenchmarkCard) -> Figure:
    """The card's panels side by side; the verdict above."""
    panels = card.details.panels
    drawing = Figure(figsize=(4.2 * len(panels), 3.5), layout="constrained")
    for axes, panel in zip(drawing.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        lines = lines_of(card, panel)
        axes.set_title(panel.title)
        axes.set_ylabel(panel.y_label)
        if any(isinstance(x, str) for xs, _ in lines.values() for x in xs):
            _draw_bars(axes, lines)
        else:
            _draw_lines(axes, panel, lines)
        if not panel.log:
            axes.set_ylim(bottom=0)
        axes.legend(fontsize=7)
    drawing.suptitle(verdict(card), x=0.01, ha="left", fontsize=10)
    return drawing


def lines_of(card: BenchmarkCard, panel: Panel) -> dict[str, Line]:
    """Each line of a panel by its name."""
    table = (card.details.tables | card.details.curves)[panel.table]
    parts: dict[str, list[Row]] = {}
    for row in table:
        if all(row[key] == value for key, value in panel.where.items()):
            parts.setdefault("" if panel.by is None else str(row[panel.by]), []).append(row)
    lines = {}
    for part, rows in parts.items():
        for column in panel.y:
            points = [(row[panel.x], row[column]) for row in rows if row.get(column) is not None]
            name = part or column.removesuffix(f"_{panel.y_label}").replace("_", " ")
            lines[name] = ([x for x, _ in points], [float(y or 0) for _, y in points])
    return lines


def _draw_bars(axes: Axes, lines: dict[str, Line]) -> None:
    """A group of bars for each x, a colour for each line."""
    groups = {x: j for j, x in enumerate(dict.fromkeys(str(x) for xs, _ in lines.values() for x in xs))}
    width = 0.8 / len(lines)
    for i, (name, (xs, ys)) in enumerate(lines.items()):
        places = [groups[str(x)] + (i - (len(lines) - 1) / 2) * width for x in xs]
        axes.bar(places, ys, width, color=_COLOURS[i % len(_COLOURS)], label=name)
    axes.set_xticks(list(groups.values()), [x.replace(", ", "\n") for x in groups])


def _draw_lines(axes: Axes, panel: Panel, lines: dict[str, Line]) -> None:
    axes.set_xlabel(panel.x)
    for i, (name, (xs, ys)) in enumerate(lines.items()):
        marker = _MARKERS[i % len(_MARKERS)] if len(xs) < 20 else None
        axes.plot([float(x) for x in xs], ys, color=_COLOURS[i % len(_COLOURS)], marker=marker, label=name)
    if panel.log:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted({float(x) for xs, _ in lines.values() for x in xs})
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
