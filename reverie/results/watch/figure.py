"""The figure of what was watched, from the numbers alone."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from reverie.errors import plain
from reverie.results.style import CHANCE, GREY, STYLE, scale_shares, set_title
from reverie.results.watch.collect import Answers, Watch

_COLOURS = matplotlib.colormaps["magma_r"]  # dark: a large change
_DECADES = 4.0  # of the colour scale at most
_MAPS_HEIGHT_IN = 9.0  # of all heat maps together at most
_SEPARATED = 64  # windows that are told apart by lines between them


@matplotlib.rc_context(STYLE)
def draw(watch: Watch) -> Figure:
    """Windows from left to right: a heat map of each block's changes by pass, then time, passes, and answers."""
    W, blocks, spent = len(watch.windows), watch.fast_weight_blocks, [window.passes for window in watch.windows]
    map_height = min(0.3 + 0.11 * max(watch.num_passes, 2), 1.4, _MAPS_HEIGHT_IN / max(len(blocks), 1))
    strips = 2 if len(set(spent)) > 1 else 1
    heights = [map_height] * len(blocks) + [0.45] * strips + [1.7] * len(watch.answers)
    size = min(max(6.4, 2.5 + W / 80), 14.0), sum(heights) + 0.14 * len(heights) + 0.9
    drawing = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.02, hspace=0.0))
    panels = [*drawing.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]]
    if blocks:
        _draw_maps(drawing, panels[: len(blocks)], watch, map_height)
    rest = panels[len(blocks) :]
    seconds = [window.seconds for window in watch.windows]
    if max(seconds, default=0) < 0.5:
        _draw_bars(rest[0], [1e3 * x for x in seconds], "ms")
    else:
        _draw_bars(rest[0], seconds, "seconds")
    if strips > 1:
        _draw_bars(rest[1], spent, "passes")
    for axes, answers in zip(rest[strips:], watch.answers, strict=True):
        _draw_answers(axes, answers, watch.texts)
    _scale_windows(panels[-1], watch)
    drawing.align_ylabels(panels)
    set_title(drawing, plain(watch.title))
    return drawing


def changes(watch: Watch, block: int) -> np.ndarray:
    """Relative changes of a block's fast weights, [N, W]; NaN where nothing ran."""
    passes = range(1, watch.num_passes + 1)
    return np.array([[w.change.get(n, {}).get(block, np.nan) for w in watch.windows] for n in passes])


def _draw_maps(drawing: Figure, panels: Sequence[Axes], watch: Watch, height: float) -> None:
    """Draw a map for each block on one scale, from the smallest change to the largest, within `_DECADES`."""
    seen = [x for window in watch.windows for row in window.change.values() for x in row.values() if x > 0]
    high = max(seen, default=1.0)
    low = min(max(min(seen, default=high), high * 10**-_DECADES), high / 10)
    scale = LogNorm(low, high)
    for axes, block in zip(panels, watch.fast_weight_blocks, strict=True):
        _draw_map(axes, changes(watch, block), scale, height)
        axes.set_ylabel(f"block {block}\npass" if height > 0.5 else f"{block}")
    panels[0].set_title("relative change of the fast weights, by block and pass")
    colours = ScalarMappable(scale, _COLOURS)
    bar = drawing.colorbar(colours, ax=[*panels], aspect=height * len(panels) / 0.1, pad=0.01, label="‖ΔS‖ / ‖S‖")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 30 * low else (1.0, 2.0, 5.0)))
    bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    bar.ax.yaxis.set_minor_locator(NullLocator())


def _draw_map(axes: Axes, change: np.ndarray, scale: LogNorm, height: float) -> None:
    """Draw passes downwards; what did not run stays grey."""
    passes, W = change.shape
    edges: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.6} if W <= _SEPARATED else {}
    x, y, shown = np.arange(W + 1), np.arange(passes + 1) + 0.5, np.ma.masked_invalid(change)
    axes.pcolormesh(x, y, shown, cmap=_COLOURS, norm=scale, rasterized=True, gid="changes", **edges)
    axes.grid(False)
    axes.set_facecolor("#f4f4f4")
    axes.set_ylim(passes + 0.5, 0.5)
    shown_passes = {1, (passes + 1) // 2, passes} if height > 0.5 else {1, passes}
    axes.set_yticks(range(1, passes + 1) if passes <= 4 and height > 0.5 else sorted(shown_passes))
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


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
    marker = "o" if len(answers.lines[0].accuracy) <= 20 else ""
    for line, colour in zip(answers.lines, colours, strict=True):
        axes.plot(line.accuracy, color=colour, marker=marker, markersize=3.5, label=line.name, clip_on=False)
        if not same:
            axes.axhline(line.chance, color=colour, linestyle="--", linewidth=0.8, alpha=0.7, gid="chance")
    if same:
        axes.axhline(chances[0], **CHANCE)
    else:
        axes.plot([], [], linestyle="--", color=GREY, linewidth=0.8, label="chance")
    about = "1 text" if texts == 1 else f"{texts} texts"
    axes.set_title(f"right answers when asked after each window, by {answers.by} ({about})")
    scale_shares(axes)
    beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.05), "borderaxespad": 0.3}
    legend = axes.legend(fontsize=7, title=answers.by, title_fontsize=7, alignment="left", **beside)
    legend.set_in_layout(False)  # it has the margin that the colour bar needs


def ends(watch: Watch) -> list[int]:
    """Tokens read before the first window shown, and after every one."""
    first = watch.windows[0].start if watch.windows else 0
    return list(accumulate((window.tokens for window in watch.windows), initial=first))


def _scale_windows(axes: Axes, watch: Watch) -> None:
    """Label tokens read, with a tick where each window ends, as long as they can be told apart."""
    tokens, W = ends(watch), len(watch.windows)
    most = 8 if tokens[-1] < 10_000 else 5  # as many as there is room for
    stride = next(n for n in (m * 10**e for e in range(9) for m in (1, 2, 3, 4, 5)) if n * most >= W)
    labelled = range(0, W + 1, stride)
    axes.set_xlim(0, W)
    axes.set_xticks(labelled, [f"{tokens[i]:,}" for i in labelled])
    where = f"every {watch.config.window_size:,}"
    if W <= 2 * _SEPARATED:
        axes.set_xticks(range(W + 1), minor=True)
        where = "at every tick"
    axes.set_xlabel(f"tokens read; the model sleeps {where}")
