"""What figures have in common: fonts, greys, and the colour of a number of sleep passes."""

from __future__ import annotations

import math
from typing import Any

import matplotlib
from matplotlib.colors import to_hex

INK = "#333333"
GREY = "#8c8c8c"
CHANCE: dict[str, Any] = {"linestyle": "--", "color": INK, "linewidth": 1, "label": "chance", "zorder": 1.9}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.7,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "legend.frameon": False,
}
_MARKERS = ("o", "s", "^", "D")


def look_of(num_sleep_passes: int) -> tuple[str, str]:
    """Colour and marker of N: from orange over red to dark blue, the same in all figures."""
    rank = math.log2(max(1, num_sleep_passes))
    place = min(rank / 3, 1.0)
    return to_hex(matplotlib.colormaps["plasma_r"](0.22 + 0.73 * place)), _MARKERS[round(rank * 1.5) % len(_MARKERS)]
