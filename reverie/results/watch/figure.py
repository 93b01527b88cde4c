"""The figure of what was watched, from the numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import (
    FixedLocator,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
    StrMethodFormatter,
)

from reverie.errors import plain
from reverie.results.style import CHANCE, GREY, INK, STYLE
from reverie.results.watch.collect import Answers, Watch

_COLOURS = matplotlib.colormaps["magma_r"]  # dark: a large change
_DECADES = 4.0  # of the colour scale at most
_WIDTH_IN = (6.4, 14.0)
_MAP_HEIGHT_IN = 9.0  # of all heat maps together at most
_SEPARATED = 64  # windows that are told apart by lines between them


def draw(watch: Watch) -> Figure:
    """Windows from left to right: a heat map of each block's changes by pass, then time, passes, and answers."""
    spent = _spends_differently(watch)
    heights = [_map_height(watch)] * len(watch.fast_weight_blocks) + [0.45] * (1 + spent) + [1.7] * len(watch.answers)
    layout = ConstrainedLayoutEngine(h_pad=0.02, hspace=0.0)
    with matplotlib.rc_context(STYLE):
        drawing = Figure(figsize=(_width(watch), sum(heights) + 0.14 * len(heights) + 0.9), layout=layout)
        panels = [*drawing.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]]
        maps, rest = panels[: len(watch.fast_weight_blocks)], panels[len(watch.fast_weight_blocks) :]
        if maps:
            _draw_maps(drawing, maps, watch)
        _draw_seconds(rest[0], [window.seconds for window in watch.windows])
        if spent:
            _draw_bars(rest[1], [window.passes for window in watch.windows], "passes")
        for axes, answers in zip(rest[1 + spent :], watch.answers, strict=True):
            _draw_answers(axes, answers, watch.texts)
        _scale_windows(panels, watch)
        drawing.align_ylabels(panels)
        drawing.suptitle(plain(watch.title), x=0.01, ha="left", fontsize=10, color=INK, parse_math=False)
    return drawing


def _width(watch: Watch) -> float:
    low, high = _WIDTH_IN
    return min(max(low, 2.5 + len(watch.windows) / 80), high)


def _map_height(watch: Watch) -> float:
    """Of one block's heat map, in inches."""
    rows = max(watch.num_passes, 2)
    return min(0.3 + 0.11 * rows, 1.4, _MAP_HEIGHT_IN / max(len(watch.fast_weight_blocks), 1))


def _spends_differently(watch: Watch) -> bool:
    return len({window.passes for window in watch.windows}) > 1


def changes(watch: Watch, block: int) -> np.ndarray:
    """[N, W], NaN where nothing ran."""
    passes = range(1, watch.num_passes + 1)
    return np.array([[w.change.get(n, {}).get(block, np.nan) for w in watch.windows] for n in passes])


def _draw_map(axes: Axes, watch: Watch, block: int, scale: LogNorm) -> QuadMesh:
    """Passes downwards; what did not run stays grey."""
    edges, passes = np.arange(len(watch.windows) + 1), np.arange(watch.num_passes + 1) + 0.5
    lines = {"edgecolor": "white", "linewidth": 0.6} if len(watch.windows) <= _SEPARATED else {}
    shown = np.ma.masked_invalid(changes(watch, block))
    mesh = axes.pcolormesh(edges, passes, shown, cmap=_COLOURS, norm=scale, rasterized=True, gid="changes", **lines)
    axes.grid(False)
    axes.set_facecolor("#f4f4f4")
    axes.set_ylim(watch.num_passes + 0.5, 0.5)
    axes.set_yticks(_pass_ticks(watch.num_passes))
    axes.set_ylabel(f"block {block}\npass" if _map_height(watch) > 0.5 else f"{block}")
    axes.tick_params(which="both", length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return mesh


def _draw_maps(drawing: Figure, panels: Sequence[Axes], watch: Watch) -> None:
    """One scale for all blocks, its bar beside them: from the smallest change to the largest, or as far as it goes."""
    seen = [x for window in watch.windows for row in window.change.values() for x in row.values() if x > 0]
    high = max(seen, default=1.0)
    low = min(max(min(seen, default=high), high * 10**-_DECADES), high / 10)
    scale = LogNorm(low, high)
    meshes = [
        _draw_map(axes, watch, block, scale) for axes, block in zip(panels, watch.fast_weight_blocks, strict=True)
    ]
    panels[0].set_title("relative change of the fast weights, by block and pass")
    height = _map_height(watch) * len(panels)
    bar = drawing.colorbar(meshes[0], ax=[*panels], aspect=height / 0.1, pad=0.01, label="‖ΔS‖ / ‖S‖")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 30 * low else (1.0, 2.0, 5.0)))
    bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    bar.ax.yaxis.set_minor_locator(NullLocator())


def _pass_ticks(passes: int) -> list[int]:
    """The first, the last, and powers of two between them that leave room."""
    if passes <= 4:
        return list(range(1, passes + 1))
    between = [2**i for i in range(1, 10) if 2**i <= passes * 0.7]
    return [1, *between[-2:], passes]


def _draw_seconds(axes: Axes, seconds: Sequence[float]) -> None:
    short = max(seconds, default=0) < 0.5
    _draw_bars(axes, [1e3 * x if short else x for x in seconds], "ms" if short else "seconds")


def _draw_bars(axes: Axes, values: Sequence[float], name: str) -> None:
    places = np.arange(len(values)) + 0.5
    axes.bar(places, values, 0.9 if len(values) <= _SEPARATED else 1.0, color=GREY, linewidth=0)
    axes.set_ylabel(name)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(2, steps=[1, 2, 5, 10]))


def _draw_answers(axes: Axes, answers: Answers, texts: int) -> None:
    """A line for each kind of question, from before the first window on."""
    colours = matplotlib.colormaps["plasma_r"](np.linspace(0.22, 0.95, len(answers.lines)))
    chances = [line.chance for line in answers.lines]
    same = max(chances) - min(chances) < 0.02
    few = len(answers.lines[0].accuracy) <= 20
    for line, colour in zip(answers.lines, colours, strict=True):
        marker = "o" if few else ""
        axes.plot(line.accuracy, color=colour, marker=marker, markersize=3.5, label=line.name, clip_on=False)
        if not same:
            axes.axhline(line.chance, color=colour, linestyle="--", linewidth=0.8, alpha=0.7, gid="chance")
    if same:
        axes.axhline(chances[0], **CHANCE)
    else:
        axes.plot([], [], linestyle="--", color=GREY, linewidth=0.8, label="chance")
    about = "1 text" if texts == 1 else f"{texts} texts"
    axes.set_title(f"right answers when asked after each window, by {answers.by} ({about})")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    legend = axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.0, 1.05),
        fontsize=7,
        borderaxespad=0.3,
        title=answers.by,
        title_fontsize=7,
        alignment="left",
    )
    legend.set_in_layout(False)  # it has the margin that the colour bar needs


def ends(watch: Watch) -> list[int]:
    """Tokens read before the first window shown, and after every one."""
    first = watch.windows[0].start if watch.windows else 0
    return list(accumulate((window.tokens for window in watch.windows), initial=first))


def _scale_windows(panels: Sequence[Axes], watch: Watch) -> None:
    """The model sleeps where a window ends: a tick there, as long as they can be told apart."""
    tokens, W = ends(watch), len(watch.windows)
    ticks = min(W, 8 if tokens[-1] < 100_000 else 5)  # as many as there is room for
    labelled = [round(i * W / ticks) for i in range(ticks + 1)]
    bottom = panels[-1]
    bottom.set_xlim(0, W)
    bottom.set_xticks(labelled, [f"{tokens[i]:,}" for i in labelled])
    if W <= 2 * _SEPARATED:
        bottom.xaxis.set_minor_locator(FixedLocator(range(W + 1)))
        bottom.xaxis.set_minor_formatter(NullFormatter())
    where = "at every tick" if W <= 2 * _SEPARATED else f"every {watch.config.window_size:,}"
    bottom.set_xlabel(f"tokens read; the model sleeps {where}")
