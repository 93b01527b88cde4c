"""The table and the figure of what is remembered of notes."""

import math
import re
import statistics
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from reverie.bench.tables import markdown_table
from reverie.results.style import GREY, STYLE, look_of_settings, scale_shares, set_title

MEMORY, EMPTY, CONTEXT, SEARCH = "memory", "empty memory", "page in context", "3 sentences by BM25"
SCALES = {
    "windows": "windows of facts",
    "between": "tokens of Python's help between",
    "between_story": "tokens of a story between",
    "passes": "N",
}


def table(card: dict[str, Any]) -> str:
    """Right answers in %, mean and range over runs; exact ones in brackets."""
    scores = card["scores"]
    kinds = list(scores["sides"][0][MEMORY])
    rows = [
        [kind, *(_shares([run[side].get(kind) for run in scores["sides"]]) for side in scores["sides"][0])]
        for kind in kinds
    ]
    parts = [markdown_table(["kind of question", *scores["sides"][0]], rows)]
    for name, what in SCALES.items():
        runs, places = scores[name], scores[name][0]
        rows = [[place, str(places[place]["questions"]), _shares([run[place] for run in runs])] for place in places]
        parts.append(markdown_table([what, "questions", "right"], rows))
    changed = ["facts that changed, the newest", str(scores["changed"][0]["questions"]), _shares(scores["changed"])]
    parts.append(markdown_table(["", "questions", "right"], [changed]))
    nats = [[side, _spread([run[side] for run in scores["story"]])] for side in scores["story"][0]]
    parts.append(markdown_table(["the story after", "nats a token"], nats))
    return "\n\n".join(parts)


def _shares(found: Sequence[dict[str, float] | None]) -> str:
    some = [one for one in found if one is not None]
    return " ".join(form.format(_range([100 * one[key] for one in some])) for key, form in _SHOWN.items())


def _spread(runs: Sequence[list[float]]) -> str:
    """The mean over windows and runs, and the standard error over windows."""
    windows = [statistics.fmean(values) for values in zip(*runs, strict=True)]
    return f"{statistics.fmean(windows):.3f} ± {statistics.stdev(windows) / math.sqrt(len(windows)):.3f}"


_SHOWN = {"right": "{}", "exact": "({})"}


def _range(values: list[float]) -> str:
    mean = f"{statistics.fmean(values):.0f}"
    return mean if len(values) == 1 else f"{mean} [{min(values):.0f}, {max(values):.0f}]"


@matplotlib.rc_context(STYLE)
def figure(card: dict[str, Any]) -> Figure:
    """Right answers by kind of question and side, over windows of facts, and over other text between."""
    drawing = Figure(figsize=(10.5, 3.4), layout="constrained")
    left, middle, right = drawing.subplots(1, 3, width_ratios=[6, 2, 2])
    scores, sides = card["scores"], list(card["scores"]["sides"][0])
    kinds = list(scores["sides"][0][MEMORY])
    for i, side in enumerate(sides):
        heights = [statistics.fmean(run[side][kind]["right"] for run in scores["sides"]) for kind in kinds]
        places = [place + (i - 1.5) * 0.2 for place in range(len(kinds))]
        left.bar(places, heights, 0.19, color=GREY if side == EMPTY else look_of_settings(i, 4)[0], label=side)
    left.set_xticks(range(len(kinds)), [re.sub("(?<=[/:])", "\n", kind) for kind in kinds], fontsize=8)
    left.legend(frameon=False, fontsize=8)
    left.set_title("by kind of question")
    curves = (
        (middle, "windows", 0, None),
        (right, "between_story", 0, "a story"),
        (right, "between", 2, "Python's help"),
    )
    for axes, name, colour, label in curves:
        places = [int(place) for place in scores[name][0]]
        for i, run in enumerate(scores[name]):
            shares = [run[str(place)]["right"] for place in places]
            axes.plot(places, shares, "o-", color=look_of_settings(colour, 4)[0], label=None if i else label)
        axes.set_xticks(places)
    middle.set_xlabel("windows of facts")
    right.set_xlabel("other tokens between")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, middle, right):
        scale_shares(axes)
    set_title(drawing, f"{card['name']}: right answers about pages that were read and are gone")
    return drawing
