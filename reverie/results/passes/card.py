"""The card of models that sleep any number of passes: accuracy over N, and what adaptive sleep spends and saves."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field

from reverie.recipe.random_passes import RandomPasses
from reverie.results.card import Chance, Metric, Part, WithSettings, headline
from reverie.results.fields import Count, Passes, ScoreSummary, Seconds, Share, Spent, Tolerance
from reverie.results.provenance import Hardware
from reverie.results.settings import settings_label


class Training(Part):
    """Length and origin of a run's training; commit and hardware are None where it has not ended."""

    steps: Count
    tokens: Count
    wall_time_s: Seconds
    commit: str | None = None
    hardware: Hardware | None = None


class Evaluated(Part):
    """A run that sleeps N passes, or with `tolerance` at most N and as few as it needs."""

    num_sleep_passes: Passes
    tolerance: Tolerance | None = None
    mean_passes: Spent  # per window slept over
    wall_time_s: Seconds
    score: ScoreSummary


class PassesRun(WithSettings):
    """One trained model at all numbers of passes and tolerances. `name` is that of its recipe."""

    name: str
    seed: Count
    trained_with: Passes | RandomPasses
    parameters: Count
    recipe: dict[str, Any]
    training: Training
    fixed: list[Evaluated] = Field(min_length=1)
    adaptive: list[Evaluated] = Field(default_factory=list)

    @property
    def label(self) -> str:
        return regime_label(self.trained_with, self.settings)

    @property
    def planned_steps(self) -> int:
        """Steps in the recipe; a run may have been trained for fewer."""
        train = self.recipe.get("train")
        return int(train.get("steps", self.training.steps)) if isinstance(train, dict) else self.training.steps


class OverSeeds(Part):
    """A number for each seed of a regime, in their order."""

    mean: Spent
    low: Spent
    high: Spent
    values: Annotated[list[Spent], Field(min_length=1)]

    @classmethod
    def of(cls, values: Sequence[float]) -> OverSeeds:
        return cls(mean=statistics.fmean(values), low=min(values), high=max(values), values=list(values))


class FixedResult(Part):
    """A regime with the same N for every window."""

    num_sleep_passes: Passes
    accuracy: OverSeeds


class AdaptiveResult(Part):
    """A regime that wakes up by `tolerance`, at the latest after the largest of the fixed N.

    `share_saved` is 1 − passes / that largest N; `equal_passes` is `passes_to_reach` the adaptive accuracy on the fixed
    curve of the same seed, `reached` whether it is reached there; `saved` is `equal_passes` minus the passes spent.
    """

    tolerance: Tolerance
    accuracy: OverSeeds
    passes: OverSeeds
    share_saved: OverSeeds
    equal_passes: OverSeeds
    saved: OverSeeds
    reached: list[bool]


class Regime(WithSettings):
    """Runs that were trained with the same N, or the same random N, and settings; they differ in their seeds alone."""

    trained_with: Passes | RandomPasses
    seeds: Annotated[list[Count], Field(min_length=1)]
    fixed: list[FixedResult]
    adaptive: list[AdaptiveResult]

    @property
    def label(self) -> str:
        return regime_label(self.trained_with, self.settings)


class PassesCard(Part):
    """Runs of one task, evaluated on the same held-out examples at each N of `num_sleep_passes` and each tolerance.

    Commit, date, hardware and wall time are those of the evaluation.
    """

    kind: Literal["passes"] = "passes"
    name: str
    metric: Metric  # of figure and tables
    num_sleep_passes: Annotated[list[Passes], Field(min_length=1)]
    tolerances: list[Tolerance]
    examples: Count
    commit: str
    date: str
    hardware: Hardware
    wall_time_s: Seconds
    chance: Chance
    metric_chance: Share
    regimes: list[Regime] = Field(min_length=1)
    runs: list[PassesRun]

    def check(self) -> None:
        points, tolerances = len(self.num_sleep_passes), len(self.tolerances)
        for regime in self.regimes:
            if (len(regime.fixed), len(regime.adaptive)) != (points, tolerances):
                raise ValueError(f"{regime.label} has not one result for each of num_sleep_passes and tolerances")
            for result in regime.adaptive:
                if len(result.passes.values) != len(result.accuracy.values):
                    raise ValueError(f"{regime.label} has passes and accuracies of different seeds")


def regime_label(trained_with: int | RandomPasses, settings: Mapping[str, str] | None = None) -> str:
    """The name of a regime, such as "N = 4" or "random N, 1 to 7"; distributions that are not uniform are named."""
    if settings:
        return f"{regime_label(trained_with)}, {settings_label(settings)}"
    low, high = trained_range(trained_with)
    if isinstance(trained_with, int):
        return f"N = {low}"
    if trained_with.distribution == "uniform":
        return f"random N, {low} to {high}"
    return f"random N, {trained_with.distribution.replace('_', '-')}, mean {trained_with.mean:g}, up to {high}"


def trained_range(trained_with: int | RandomPasses) -> tuple[int, int]:
    """The smallest and the largest N that training can have."""
    if isinstance(trained_with, int):
        return trained_with, trained_with
    uniform = trained_with.distribution == "uniform"
    return 1, min(round(2 * trained_with.mean) - 1, trained_with.max) if uniform else trained_with.max


def passes_to_reach(accuracy: float, numbers: Sequence[int], accuracies: Sequence[float]) -> tuple[float, bool]:
    """The smallest number of fixed passes with at least this accuracy, on straight lines between the N, and True.

    Where no N, which ascend, is so good: the best N (the smallest of equally good ones) and False.
    """
    if accuracies[0] >= accuracy:
        return float(numbers[0]), True
    for (n, low), (above, high) in pairwise(zip(numbers, accuracies, strict=True)):
        if high >= accuracy:
            return n + (above - n) * (accuracy - low) / (high - low), True
    return float(numbers[accuracies.index(max(accuracies))]), False


def regimes_of(runs: Sequence[PassesRun], metric: Metric) -> list[Regime]:
    """Sum up runs, in their order, by what they were trained with and their settings."""
    groups: dict[tuple[Any, ...], list[PassesRun]] = {}
    for run in runs:
        groups.setdefault((run.trained_with, *run.settings.items()), []).append(run)
    return [_regime(group, metric) for group in groups.values()]


def _regime(runs: Sequence[PassesRun], metric: Metric) -> Regime:
    return Regime(
        trained_with=runs[0].trained_with,
        settings=runs[0].settings,
        seeds=[run.seed for run in runs],
        fixed=[
            FixedResult(
                num_sleep_passes=points[0].num_sleep_passes,
                accuracy=OverSeeds.of([headline(point.score, metric) for point in points]),
            )
            for points in zip(*(run.fixed for run in runs), strict=True)
        ],
        adaptive=[_adaptive(runs, points, metric) for points in zip(*(run.adaptive for run in runs), strict=True)],
    )


def _adaptive(runs: Sequence[PassesRun], points: Sequence[Evaluated], metric: Metric) -> AdaptiveResult:
    """The result of one tolerance, at which each run has its point."""
    accuracies, spent = [headline(point.score, metric) for point in points], [point.mean_passes for point in points]
    equal = list[tuple[float, bool]]()
    for run, accuracy in zip(runs, accuracies, strict=True):
        fixed = [headline(point.score, metric) for point in run.fixed]
        equal.append(passes_to_reach(accuracy, [point.num_sleep_passes for point in run.fixed], fixed))
    return AdaptiveResult(
        tolerance=points[0].tolerance or 0.0,
        accuracy=OverSeeds.of(accuracies),
        passes=OverSeeds.of(spent),
        share_saved=OverSeeds.of([1 - p / point.num_sleep_passes for p, point in zip(spent, points, strict=True)]),
        equal_passes=OverSeeds.of([passes for passes, _ in equal]),
        saved=OverSeeds.of([passes - p for (passes, _), p in zip(equal, spent, strict=True)]),
        reached=[reached for _, reached in equal],
    )
