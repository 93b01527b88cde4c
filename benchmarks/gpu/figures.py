"""The paper's figures 2a, 2b and 3 from cards alone, beside guessing and the paper's numbers; and the figure of speeds.

    python benchmarks/gpu/figures.py state/results/cards/t32-*.json --out t32.png

Which figure it is follows from the cards: one depth and several t, one depth and several numbers of passes, or several
depths. Cards of runs that are still going are drawn as far as they are.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from reverie.errors import UserError
from reverie.results.card import CurvePoint, RunCard, load_card
from reverie.results.plots import save_figure
from reverie.results.style import CHANCE, GREY, INK, STYLE, look_of

# Exact accuracy at t = 32 behind 5B tokens, as the paper tells it: about 10 and 20 %, above 30 % with 3 and 4 passes.
PAPER_T32 = {(1,): 0.10, (2,): 0.20, (3, 4): 0.30}
PAPER_T32_TOKENS = 5e9
PAPER_T32_STEPS = 32
MOST_PANELS = 5
LOG_RATIO = 20  # of the longest curve to its first point, from which on tokens are better seen on a log scale

Cards = Mapping[str, RunCard]
GUESSING: dict[str, Any] = CHANCE | {"label": "guessing"}


def figure_of(title: str, cards: Cards) -> Figure:
    """Of runs by name. Raises UserError where they are of several tasks, or none has a curve yet."""
    cards = {name: card for name, card in cards.items() if card.curve}
    tasks = {card.recipe["task"]["name"] for card in cards.values()}
    if not cards:
        raise UserError("there is nothing to draw: no run has a point of its curve yet")
    if len(tasks) > 1:
        raise UserError(f"the runs must be of one task, and they are of {', '.join(sorted(tasks))}")
    if all(len(card.depths) == 1 for card in cards.values()):
        several = len({card.depths[0] for card in cards.values()}) > 1
        panels = [_by_steps_of_the_automaton if several else _by_passes]
    else:
        panels = [_at_depth(depth) for depth in _shown_depths(cards)]
    return _draw(title, cards, panels)


def speeds(card: Mapping[str, Any]) -> Figure:
    """Milliseconds a step of every way that is right and of every variant, a row of panels for each group."""
    shown = [
        [row for row in (*group["ways"], *group["variants"]) if row.get("seconds_per_step")] for group in card["groups"]
    ]
    heights = [max(len(rows), 1) for rows in shown]
    with matplotlib.rc_context(STYLE):
        drawing = Figure(figsize=(8, 0.8 + sum(0.5 + 0.24 * height for height in heights)), layout="constrained")
        all_axes = drawing.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, group, rows in zip(all_axes, card["groups"], shown, strict=True):
            _bars(axes, group["group"], rows)
        all_axes[-1].set_xlabel("milliseconds a training step")
        machine = card["machine"] or {}
        drawing.suptitle(f"{card['name']}, {machine.get('gpu') or machine.get('cpu')}", x=0.01, ha="left", fontsize=10)
    return drawing


def _bars(axes: Axes, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    names = [f"{row['variant']}: {row['name']}" if "variant" in row else row["name"] for row in rows]
    times = [1e3 * row["seconds_per_step"] for row in rows]
    colours = ["#1d4e89" if "variant" in row else "#c2410c" for row in rows]
    axes.barh(names, times, color=colours, height=0.7)
    floors = [1e3 * row["floor_s"] if row.get("floor_s") else None for row in rows]
    for y, (row, floor) in enumerate(zip(rows, floors, strict=True)):
        axes.text(times[y], y, f" {row['tokens_per_s']:,.0f} tokens/s", va="center", fontsize=7, color=INK)
        if floor is not None:
            axes.plot([floor, floor], [y - 0.4, y + 0.4], color=INK, linewidth=1.2, label=None if y else "roofline")
    axes.invert_yaxis()
    axes.set_title(title)
    axes.grid(visible=False)
    axes.set_xlim(0, 1.25 * max(times, default=1.0))
    axes.tick_params(axis="y", labelsize=7)
    if any(floor is not None for floor in floors):
        axes.legend(loc="lower right", fontsize=7)


def _draw(title: str, cards: Cards, panels: Sequence[Callable[[Axes, Cards], None]]) -> Figure:
    with matplotlib.rc_context(STYLE):
        drawing = Figure(figsize=(5.6 if len(panels) == 1 else 2.6 * len(panels) + 0.8, 3.6), layout="constrained")
        all_axes = drawing.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, panel in zip(all_axes, panels, strict=True):
            panel(axes, cards)
            axes.set_ylim(0, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        lines, names = all_axes[0].get_legend_handles_labels()
        columns = min(len(names), max(round(drawing.get_size_inches()[0] / 1.6), 1))
        drawing.legend(lines, names, loc="outside lower center", ncols=columns, columnspacing=1.2)
        seeds = sorted({card.seed for card in cards.values()})
        note = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        drawing.suptitle(f"{title}  ({note})", x=0.01, ha="left", fontsize=10, color=INK)
    return drawing


def _by_steps_of_the_automaton(axes: Axes, cards: Cards) -> None:
    """Figure 2a: a line for each t."""
    depths = sorted({float(card.depths[0]) for card in cards.values()})
    ramp = matplotlib.colormaps["viridis"]
    for card in sorted(cards.values(), key=lambda card: float(card.depths[0])):
        place = depths.index(float(card.depths[0])) / max(len(depths) - 1, 1)
        _line(axes, card, f"t = {card.depths[0]}", ramp(0.85 * (1 - place)), _exact)
    axes.set_title(f"{_models(cards)}, by rollout steps t")
    _exact_axes(axes, cards, log=False)


def _by_passes(axes: Axes, cards: Cards) -> None:
    """Figure 2b: a line for each number of passes; by name where several runs have the same one."""
    alike = len({(card.label, card.seed) for card in cards.values()}) < len(cards)
    t = next(iter(cards.values())).depths[0]
    ordered = sorted(cards.items(), key=lambda item: item[1].num_sleep_passes)
    for i, (name, card) in enumerate(ordered):
        colour = matplotlib.colormaps["tab10"](i % 10) if alike else _colour(card)
        _line(axes, card, name if alike else card.label, colour, _exact)
    log = _spans_decades(cards)
    if float(t) == PAPER_T32_STEPS and not alike:
        log = True
        for passes in PAPER_T32:
            if {card.num_sleep_passes for card in cards.values()} & set(passes):
                _paper_mark(axes, passes)
    axes.set_title(f"exact accuracy at t = {t}")
    _exact_axes(axes, cards, log=log)


def _paper_mark(axes: Axes, passes: tuple[int, ...]) -> None:
    """An open mark at the paper's number; one that points up where the paper says "above"."""
    above, colour = len(passes) > 1, look_of(passes[-1])[0]
    name = f"paper, N = {' and '.join(map(str, passes))}{': above' * above}"
    look: dict[str, Any] = {"linestyle": "none", "markersize": 7, "color": colour, "markerfacecolor": "none"}
    axes.plot([PAPER_T32_TOKENS], [PAPER_T32[passes]], marker="^" if above else "o", label=name, **look)


def _at_depth(depth: str) -> Callable[[Axes, Cards], None]:
    """Figure 3: accuracy per question at one depth over steps, a line for each number of passes."""

    def panel(axes: Axes, cards: Cards) -> None:
        alike = len({(card.label, card.seed) for card in cards.values()}) < len(cards)
        for i, (name, card) in enumerate(sorted(cards.items(), key=lambda item: item[1].num_sleep_passes)):
            colour = matplotlib.colormaps["tab10"](i % 10) if alike else _colour(card)

            def accuracy(point: CurvePoint) -> float | None:
                return point.score["by_depth"].get(depth, {}).get("accuracy")

            _line(axes, card, name if alike else card.label, colour, accuracy, over="step")
        first = next(iter(cards.values()))
        axes.axhline(first.chance.by_depth[depth], **GUESSING)
        axes.set_title(f"{first.depth_name} = {depth}")
        axes.set_xlabel("steps")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e3:g}k" if x >= 1e3 else f"{x:g}")
        if axes.get_subplotspec().colspan.start == 0:  # pyright: ignore[reportOptionalMemberAccess]
            axes.set_ylabel("accuracy per question")

    return panel


def _line(
    axes: Axes,
    card: RunCard,
    label: str,
    colour: Any,
    value: Callable[[CurvePoint], float | None],
    over: str = "tokens",
) -> None:
    """One run; its label only once, and an open end where it is still going."""
    points = [(getattr(point, over), value(point)) for point in card.curve]
    shown = [(x, y) for x, y in points if y is not None]
    known = axes.get_legend_handles_labels()[1]
    xs, ys = [x for x, _ in shown], [y for _, y in shown]
    axes.plot(xs, ys, color=colour, label=None if label in known else label, clip_on=False)
    if shown and card.steps < card.recipe.get("train", {}).get("steps", 0):
        axes.plot(xs[-1:], ys[-1:], "o", color=colour, markerfacecolor="white", clip_on=False)


def _exact(point: CurvePoint) -> float:
    return float(point.score["exact_accuracy"])


def _exact_axes(axes: Axes, cards: Cards, *, log: bool) -> None:
    guesses = [card.chance.exact for card in cards.values()]
    if max(guesses) - min(guesses) > 0.005:
        axes.axhspan(min(guesses), max(guesses), color=GREY, alpha=0.25, linewidth=0, label="guessing")
    else:
        axes.axhline(guesses[0], **GUESSING)
    axes.set_ylabel("exact accuracy (all labels right)")
    axes.set_xlabel("training tokens")
    if log:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x:g}")


def _spans_decades(cards: Cards) -> bool:
    tokens = [point.tokens for card in cards.values() for point in card.curve]
    return max(tokens) > LOG_RATIO * min(tokens)


def _models(cards: Cards) -> str:
    return ", ".join(dict.fromkeys(card.label for card in cards.values()))


def _colour(card: RunCard) -> Any:
    return GREY if card.model == "transformer" else look_of(card.num_sleep_passes)[0]


def _shown_depths(cards: Cards) -> list[str]:
    """Of all, the deepest included, evenly spread where there are many."""
    depths = next(iter(cards.values())).depths
    every = math.ceil(len(depths) / MOST_PANELS)
    return depths[::-every][::-1]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cards", metavar="CARD.json", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--title", default="", help="the names of the recipes if absent")
    given = parser.parse_args(arguments)
    try:
        cards = {path.stem: load_card(path) for path in given.cards}
        runs = {name: card for name, card in cards.items() if isinstance(card, RunCard)}
        title = given.title or ", ".join(dict.fromkeys(card.name for card in runs.values()))
        save_figure(figure_of(title, runs), given.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
