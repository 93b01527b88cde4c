"""Exact accuracy over training tokens, a line for each run: the paper's figures 2a and 2b, from cards alone."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from reverie.results.card import RunCard, depth_name
from reverie.results.style import GREY, STYLE, look_of


def figure(title: str, cards: Mapping[str, RunCard]) -> Figure:
    """Draw the curve of each run, labelled with what tells it from the others: its depth, or its number of passes."""
    several = len({card.depths[0] for card in cards.values()}) > 1
    ordered = sorted(cards.values(), key=lambda card: (float(card.depths[0]), card.num_sleep_passes))
    with matplotlib.rc_context(STYLE):
        drawing = Figure(figsize=(5.6, 3.6), layout="constrained")
        axes = drawing.subplots()
        for i, card in enumerate(ordered):
            colour = matplotlib.colormaps["viridis"](i / len(ordered)) if several else look_of(card.num_sleep_passes)[0]
            label = f"{depth_name(card.recipe)} = {card.depths[0]}" if several else card.label
            tokens = [point.tokens / 1e6 for point in card.curve]
            axes.plot(tokens, [point.score["exact_accuracy"] for point in card.curve], color=colour, label=label)
        guesses = [card.chance.exact for card in ordered]
        axes.axhspan(min(guesses), max(guesses) + 0.002, color=GREY, alpha=0.4, linewidth=0, label="guessing")
        axes.set_title(title)
        axes.set_xlabel("million training tokens")
        axes.set_ylabel("exact accuracy (all labels right)")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.legend()
    return drawing
