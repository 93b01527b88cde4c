"""The card of all controls of a task, its table and its figure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from controls.cells import CONTROLS, SLEEP
from controls.costs import Costs
from reverie.bench.tables import markdown_table
from reverie.recipe import Recipe
from reverie.results.card import RunCard, headline
from reverie.results.style import CHANCE, STYLE, look_of, look_of_settings, scale_shares, set_title

MARGIN = 0.02  # of accuracy
_PASSES = {"n1": 1, "n2": 2, SLEEP: 4}  # drawn as in all figures


def card_of(
    recipe: Recipe, seeds: Sequence[int], runs: Mapping[str, Sequence[RunCard]], costs: Mapping[str, Costs]
) -> dict[str, Any]:
    """The card of controls, of which each has a run for every seed, in their order."""
    of_all = [run for some in runs.values() for run in some]
    deepest = of_all[0].depths[-1]
    return {
        "kind": "controls",
        "name": recipe.name,
        "seeds": list(seeds),
        "recipe": recipe.model_dump(mode="json"),
        "commits_of_runs": sorted({run.commit for run in of_all}),
        "wall_time_s_of_runs": round(sum(run.wall_time_s for run in of_all), 1),
        "deepest": deepest,
        "chance": recipe.task.chance()[int(deepest)],
        "controls": {name: _summed(some, costs[name]) for name, some in runs.items()},
    }


def _summed(runs: Sequence[RunCard], costs: Costs) -> dict[str, Any]:
    first = runs[0]
    return {
        "label": first.settings["control"],
        "parameters": first.parameters,
        "steps": first.steps,
        "operations": {
            "training": costs.step * first.steps,
            "reading_a_text": costs.reading,
            "awake_per_answer": costs.answer,
        },
        "wall_time_s": [round(run.wall_time_s, 1) for run in runs],
        "accuracies": [headline(run.score, "deepest") for run in runs],
        "by_depth": {depth: [run.score["by_depth"][depth]["accuracy"] for run in runs] for depth in first.depths},
        "curves": [[[point.step, headline(point.score, "deepest")] for point in run.curve] for run in runs],
    }


def rivals(card: dict[str, Any]) -> list[str]:
    """Labels of the controls that match sleep: within `MARGIN` of it at the deepest questions, or above."""
    sleeping, others = card["controls"].get(SLEEP), [x for name, x in card["controls"].items() if name != SLEEP]
    least = 1.0 if sleeping is None else statistics.fmean(sleeping["accuracies"]) - MARGIN
    return [one["label"] for one in others if statistics.fmean(one["accuracies"]) >= least]


def text(card: dict[str, Any]) -> str:
    """Which controls match sleep, and the table."""
    margin, names = f"{100 * MARGIN:.0f} points of {CONTROLS[SLEEP].label} or above", rivals(card)
    found = f"Within {margin}: {'; '.join(names)}." if names else f"No control is within {margin}."
    found = found if SLEEP in card["controls"] else f"{CONTROLS[SLEEP].label} was not run."
    return f"{card['name']}, depth {card['deepest']}. {found}\n\n{table(card)}"


def table(card: dict[str, Any]) -> str:
    """Accuracy at the deepest questions in %, mean ± standard deviation over seeds, beside N = 4, and what it took.

    The difference to N = 4 is seed by seed: its mean, and between brackets the least and the greatest.
    """
    head = ["", "accuracy", f"minus {CONTROLS[SLEEP].label}", "parameters", "steps"]
    head += ["training, TFLOPs", "reading, MFLOPs a text", "awake, MFLOPs an answer"]
    sleeping = card["controls"].get(SLEEP)
    rows = list[list[str]]()
    for one in card["controls"].values():
        accuracies, took = [100 * x for x in one["accuracies"]], one["operations"]
        beside = [] if sleeping is None else [100 * x for x in sleeping["accuracies"]]
        differences = [x - y for x, y in zip(accuracies, beside, strict=True)] if beside else []
        row = [one["label"], _spread(accuracies), _range(differences), f"{one['parameters']:,}", f"{one['steps']:,}"]
        row += [f"{took['training'] / 1e12:.1f}", f"{took['reading_a_text'] / 1e6:.1f}"]
        rows.append([*row, f"{took['awake_per_answer'] / 1e6:.2f}"])
    return markdown_table(head, rows, [False, *[True] * (len(head) - 1)])


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def _range(values: list[float]) -> str:
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):+.1f}"
    return mean if len(values) == 1 else f"{mean} [{min(values):+.1f}, {max(values):+.1f}]"


@matplotlib.rc_context(STYLE)
def figure(card: dict[str, Any]) -> Figure:
    """Accuracy at the deepest questions over operations: of the training, and awake for an answer."""
    drawing = Figure(figsize=(8.4, 4.6), layout="constrained")
    left, right = drawing.subplots(1, 2, sharey=True)
    _over(left, card, "training", "FLOPs of the training")
    _over(right, card, "awake_per_answer", "FLOPs awake per answer")
    left.set_ylabel("accuracy on the deepest questions")
    drawing.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, columnspacing=1.4)
    seeds = card["seeds"]
    note = "one seed" if len(seeds) == 1 else f"mean and range of {len(seeds)} seeds"
    set_title(drawing, f"{card['name']}  ({note})")
    return drawing


def _over(axes: Axes, card: dict[str, Any], operations: str, label: str) -> None:
    axes.axhline(card["chance"], **CHANCE)
    others = [name for name in card["controls"] if name not in _PASSES]
    for name, one in card["controls"].items():
        passes = _PASSES.get(name)
        colour, marker = look_of(passes) if passes else look_of_settings(others.index(name), len(others))
        mean, values = statistics.fmean(one["accuracies"]), one["accuracies"]
        error = [[mean - min(values)], [max(values) - mean]]
        place = one["operations"][operations]
        axes.errorbar([place], [mean], yerr=error, color=colour, marker=marker, linestyle="none", label=one["label"])
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)
    scale_shares(axes)
