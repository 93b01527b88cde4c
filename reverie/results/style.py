"""Looks that figures share: fonts, greys, the colour of a number of sleep passes, and panels of accuracy."""

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import rc_params_from_file
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from reverie.results.card import AnyCard

INK = "#333333"
GREY = "#8c8c8c"
CHANCE: dict[str, Any] = {"linestyle": "--", "color": INK, "linewidth": 1, "label": "chance", "zorder": 1.9}
_ALL = rc_params_from_file(Path(__file__).with_name("reverie.mplstyle"))  # over matplotlib's own, not a user's
STYLE: Any = {key: _ALL[key] for key in _ALL if "backend" not in key}  # figures are made without one
_MARKERS = ("o", "s", "^", "D")
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#6d5a9e", "#4d4d4d")
_LETTERS = 14  # of a legend, on an inch
_LEGEND_ROW = 0.19  # inches
_TITLE_LETTERS = 13  # on an inch


def look_of(num_sleep_passes: int) -> tuple[str, str]:
    """Colour and marker of N: from orange over red to dark blue, the same in all figures."""
    rank = math.log2(max(1, num_sleep_passes))
    place = min(rank / 3, 1.0)
    return to_hex(matplotlib.colormaps["plasma_r"](0.22 + 0.73 * place)), _MARKERS[round(rank * 1.5) % len(_MARKERS)]


def look_of_settings(index: int, count: int) -> tuple[str, str]:
    """Colour and marker of one of `count` settings; where they are many, colours shade into each other."""
    colour = (
        _COLOURS[index] if count <= len(_COLOURS) else to_hex(matplotlib.colormaps["turbo"](0.05 + 0.9 * index / count))
    )
    return colour, _MARKERS[index % len(_MARKERS)]


@matplotlib.rc_context(STYLE)
def draw_panels(title: str, y_label: str, card: AnyCard, panels: Sequence[Callable[[Axes, AnyCard], None]]) -> Figure:
    """Accuracies of a card in panels side by side, with the title above and one legend below."""
    width = 8.4 if len(panels) > 1 else 4.8
    drawing = Figure(figsize=(width, 3.6), layout="constrained")
    row = drawing.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, panel in zip(row, panels, strict=True):
        panel(axes, card)
        scale_shares(axes)
    row[0].set_ylabel(y_label)
    lines, names = row[0].get_legend_handles_labels()
    columns = min(len(names), max(int(width * _LETTERS // (max(map(len, names)) + 8)), 1))
    rows = math.ceil(len(names) / columns)
    drawing.set_figheight(3.6 + _LEGEND_ROW * max(rows - 2, 0))
    drawing.legend(lines, names, loc="outside lower center", ncols=columns, columnspacing=1.4)
    set_title(drawing, title)
    return drawing


def scale_shares(axes: Axes) -> None:
    """Let y go from 0 to 100 %."""
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def set_title(drawing: Figure, title: str) -> None:
    """Write the title of a whole figure, as it is, above on the left, on as many lines as it needs."""
    title = textwrap.fill(title, int(drawing.get_figwidth() * _TITLE_LETTERS))
    drawing.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK)
