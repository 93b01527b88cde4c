"""Runs of one task compared: results by model and number of sleep passes, over seeds."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from functools import reduce
from itertools import groupby
from typing import Any

from reverie.errors import UserError
from reverie.results.card import (
    ComparisonCard,
    DepthResult,
    Metric,
    Result,
    RunCard,
    group_of,
    headline,
    headline_chance,
    rounded,
)


def usual_metric(run: RunCard) -> Metric:
    """What a run is judged by where nothing says it: of one depth by examples with all answers right, unless they are
    pages with questions of many kinds, of which hardly one has all right."""
    return "exact" if len(run.depths) == 1 and "by_kind" not in run.score else "question"


def compare_runs(name: str, metric: Metric, runs: Sequence[RunCard]) -> ComparisonCard:
    """Group runs by model, sleep passes and settings: the transformer first, settings in the order of the runs.

    Groups may differ in their seeds (a control may need fewer), but not in depths or chance, nor in the task but for
    keys that are among their settings.
    """
    _require_comparable(runs)
    order = list(dict.fromkeys(tuple(run.settings.items()) for run in runs))

    def place(run: RunCard) -> tuple[Any, ...]:
        kind, passes, model, settings = group_of(run)
        return kind, order.index(settings), passes, model, run.seed

    runs = sorted(runs, key=place)
    return ComparisonCard(
        name=name,
        metric=metric,
        recipe=reduce(_shared, [run.recipe for run in runs]),
        commit=", ".join(dict.fromkeys(run.commit for run in runs)),
        date=max(run.date for run in runs),
        hardware=runs[0].hardware,
        seeds=sorted({run.seed for run in runs}),
        wall_time_s=math.fsum(run.wall_time_s for run in runs),
        tokens=sum(run.tokens for run in runs),
        chance=runs[0].chance,
        results=[_result(list(group), metric) for _, group in groupby(runs, group_of)],
        runs=runs,
    )


def _require_comparable(runs: Sequence[RunCard]) -> None:
    if not runs:
        raise UserError("there is no run to compare")
    first, *_ = names = [f"{run.name} ({run.label}, seed {run.seed})" for run in runs]
    for name, run in zip(names, runs, strict=True):
        if _questions(run) != _questions(runs[0]):
            raise UserError(f"{first} and {name} cannot be compared: they differ in task, depths or chance")
        if missing := ", ".join(depth for depth in run.depths if depth not in run.chance.by_depth):
            raise UserError(f"{name} has no chance for depth {missing}")
    (group, seed), count = Counter((run.label, run.seed) for run in runs).most_common(1)[0]
    if count > 1:
        raise UserError(f"there are {count} runs of {group} with seed {seed}; give one per seed")


def _questions(run: RunCard) -> tuple[Any, ...]:
    """Task, depths and chance, equal for runs that are comparable; a card from a file has rounded chances."""
    task = run.recipe.get("task")
    if isinstance(task, dict):
        told = {key.split(".")[1] for key in run.settings if key.startswith("task.")} - {"name"}
        task = {key: value for key, value in task.items() if key not in told}
    return task, run.depths, rounded(run.chance.model_dump())


def _result(runs: Sequence[RunCard], metric: Metric) -> Result:
    first, overall = runs[0], _over_seeds([headline(run.score, metric) for run in runs])
    return Result(
        model=first.model,
        num_sleep_passes=first.num_sleep_passes,
        settings=first.settings,
        seeds=[run.seed for run in runs],
        accuracy=overall.mean,
        accuracy_std=overall.std,
        accuracies=overall.values,
        chance=headline_chance(first.chance, first.depths, metric),
        tokens_per_run=round(statistics.fmean(run.tokens for run in runs)),
        wall_time_s_per_run=statistics.fmean(run.wall_time_s for run in runs),
        by_depth={d: _over_seeds([run.score["by_depth"][d]["accuracy"] for run in runs]) for d in first.depths},
    )


def _over_seeds(values: list[float]) -> DepthResult:
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return DepthResult(mean=statistics.fmean(values), std=std, values=values)


def _shared(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The entries that are the same in two recipes, at any level."""
    shared = {}
    for key in [key for key in one if key in other]:
        if isinstance(one[key], dict) and isinstance(other[key], dict):
            shared[key] = _shared(one[key], other[key])
        elif one[key] == other[key]:
            shared[key] = one[key]
    return shared
