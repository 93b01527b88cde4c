"""Several cards of runs and comparisons in one figure."""

import os
from collections.abc import Sequence
from pathlib import Path

from reverie.errors import UserError
from reverie.results.card import Card, ComparisonCard, Metric, RunCard, load_card
from reverie.results.comparison import compare_runs, usual_metric
from reverie.results.plots import figure, save_figure
from reverie.results.settings import differences


def plot_together(paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None) -> Path:
    """Draw the runs of all cards in one figure, `together.png`, beside the first card or in the folder `out`.

    Raises:
        UserError: a card is of another kind, or they differ in task, depths, chance or metric.
    """
    image = (Path(paths[0]).parent if out is None else Path(out)) / "together.png"
    save_figure(figure(joined([load_card(path) for path in paths])), image)
    return image


def joined(cards: Sequence[Card]) -> ComparisonCard:
    """One comparison of the runs of all cards; their settings are the keys in which their recipes differ."""
    runs = list[RunCard]()
    for run in (run for card in cards for run in (card.runs if isinstance(card, ComparisonCard) else [card])):
        plain = run.model_copy(update={"settings": {}})
        if plain not in runs:  # a run and the comparison that it is in may both be given
            runs.append(plain)
    metrics: list[Metric] = list(dict.fromkeys(card.metric for card in cards if isinstance(card, ComparisonCard)))
    if len(metrics) > 1:
        raise UserError(f"cards by {' and '.join(metrics)} accuracy cannot be in one figure: compare by one metric")
    # A baseline differs from models that sleep in what makes it one.
    for baseline in (True, False):
        kind = [i for i, run in enumerate(runs) if (run.model == "transformer") == baseline]
        told = differences([runs[i].recipe for i in kind], but={"sleep.num_sleep_passes"})
        for i, settings in zip(kind, told, strict=True):
            runs[i] = runs[i].model_copy(update={"settings": settings})
    name = " and ".join(dict.fromkeys(card.name for card in cards))
    return compare_runs(name, metrics[0] if metrics else usual_metric(runs[0]), runs)
