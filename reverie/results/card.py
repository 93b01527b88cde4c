"""Result cards: what a run, or a comparison of runs, has found, as JSON. Figures and quoted numbers come from them."""

import json
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_serializer

from reverie.errors import UserError, not_this_version, plain
from reverie.files import opened, write_atomic
from reverie.results.fields import Count, Depth, Part, Passes, ScoreSummary, Seconds, Share
from reverie.results.provenance import Hardware
from reverie.results.settings import settings_label
from reverie.tasks import find_task

ModelKind = Literal["transformer", "hybrid", "sleep"]
Metric = Literal["question", "exact", "deepest"]
METRIC_NAMES: dict[Metric, str] = {
    "question": "accuracy per question",
    "exact": "exact accuracy",
    "deepest": "accuracy on the deepest questions",
}

_SIGNIFICANT_DIGITS = 5
_LINE_WIDTH = 120
CARD_VERSION = 1


Report = Callable[[int, int, str], None]
"""Called before each part of a long measurement: parts done, parts in all, and what this one measures."""


class Chance(Part):
    """`Task.chance()`, perhaps of more depths than were asked, and `Task.chance_exact()`."""

    by_depth: dict[Depth, Share]
    exact: Share


class PassStatistics(Part):
    """Norms by pass in one training step, over the windows that were slept over.

    Of a head's fast weights, and of their relative change by the pass: means over heads, blocks, windows and examples.
    Of the loss's gradient with respect to all fast weights after the pass, and to all h after it (0 for the last pass).
    """

    fast_weight_norm: list[float]
    fast_weight_change: list[float]
    fast_weight_gradient: list[float]
    hidden_gradient: list[float]


class CurvePoint(Part):
    """One evaluation during training; `train_loss` is the mean since the point before.

    `gradient_norm` (before clipping), `depth` and `passes` are those of the newest step; older cards lack them.
    """

    step: Count
    tokens: Count
    wall_time_s: Seconds
    train_loss: float
    depth: int | None = None  # the deepest question that the newest step asked
    gradient_norm: float | None = None
    passes: PassStatistics | None = None
    score: ScoreSummary


class WithSettings(Part):
    """A part that may be told apart by `settings`: values of keys in which the recipes of a card differ."""

    settings: dict[str, str] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _as_ever_without(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key != "settings" or value}


class RunCard(WithSettings):
    """A training run: one model, one number of sleep passes, one seed; `settings` are those in its comparison."""

    kind: Literal["run"] = "run"
    name: str
    model: ModelKind
    num_sleep_passes: Passes
    seed: Count
    recipe: dict[str, Any]
    commit: str
    date: str
    hardware: Hardware
    processes: Count = 1  # that trained together
    parallel: Literal["ddp", "fsdp"] | None = None
    wall_time_s: Seconds
    tokens: Count
    steps: Count
    parameters: Count
    score: ScoreSummary
    chance: Chance
    curve: list[CurvePoint]

    @property
    def label(self) -> str:
        return _label(self.model, self.num_sleep_passes, self.settings)

    @property
    def depths(self) -> list[str]:
        return sorted(self.score["by_depth"], key=float)

    def check(self) -> None:
        if not self.depths:
            raise ValueError("it has no depth")
        asked = [self.chance.by_depth, *(point.score["by_depth"] for point in self.curve)]
        if missing := [depth for depth in self.depths if any(depth not in part for part in asked)]:
            raise ValueError(f"its chance, or a point of its curve, lacks depth {missing[0]}")


class DepthResult(Part):
    """Accuracy per question at one depth, over seeds."""

    mean: Share
    std: Share
    values: Annotated[list[Share], Field(min_length=1)]


class Result(WithSettings):
    """All seeds of one model at one number of sleep passes, with the same settings.

    `seeds`, `accuracies` and the `values` of each depth are in the same order; `std` is that of a sample, 0 for one.
    """

    model: ModelKind
    num_sleep_passes: Passes
    seeds: list[Count]
    accuracy: Share
    accuracy_std: Share
    accuracies: Annotated[list[Share], Field(min_length=1)]
    chance: Share
    tokens_per_run: Count
    wall_time_s_per_run: Seconds
    by_depth: Annotated[dict[Depth, DepthResult], Field(min_length=1)]

    @property
    def label(self) -> str:
        return _label(self.model, self.num_sleep_passes, self.settings)


class ComparisonCard(Part):
    """Runs of one task that differ in model, sleep passes, seed and settings.

    `metric` is the accuracy in `Result.accuracy`. `recipe` is what all runs share, `hardware` that of the first run,
    `date` the last run's; tokens and time are sums.
    """

    kind: Literal["comparison"] = "comparison"
    name: str
    metric: Metric
    recipe: dict[str, Any]
    commit: str
    date: str
    hardware: Hardware
    seeds: list[Count]
    wall_time_s: Seconds
    tokens: Count
    chance: Chance
    results: list[Result] = Field(min_length=1)
    runs: list[RunCard]

    @property
    def depths(self) -> list[str]:
        return sorted(self.results[0].by_depth, key=float)

    @property
    def one_model(self) -> str | None:
        """The label of model and sleep passes where all have the same, and their settings tell them apart."""
        labels = {_label(result.model, result.num_sleep_passes, {}) for result in self.results}
        return labels.pop() if len(labels) == 1 and len(self.results) > 1 else None

    def label_of(self, result: Result) -> str:
        """The label of a result, without what `one_model` says."""
        return settings_label(result.settings) if self.one_model else result.label

    def check(self) -> None:
        for run in self.runs:
            run.check()
        for result in self.results:
            told = [result.by_depth, self.chance.by_depth, *(run.score["by_depth"] for run in self.runs_of(result))]
            if len(told) == 2:
                raise ValueError(f"it has no run of {result.label}")
            if missing := [depth for depth in self.depths if any(depth not in part for part in told)]:
                raise ValueError(f"{result.label}, its runs or chance lack depth {missing[0]}")

    def runs_of(self, result: Result) -> list[RunCard]:
        """The runs that `result` sums up, in the order of its seeds."""
        return [run for run in self.runs if group_of(run) == group_of(result)]


Card = RunCard | ComparisonCard
AnyCard = TypeVar("AnyCard", bound=Part)


def save_card(card: BaseModel, path: str | os.PathLike[str]) -> None:
    """Write a card in one move; measured floats are rounded to 5 significant digits, the recipe is kept as it is."""
    write_atomic(path, (_layout(rounded({"version": CARD_VERSION} | card.model_dump())) + "\n").encode())


def load_card(path: str | os.PathLike[str]) -> Card:
    """Read the card of a run or of a comparison that `save_card` wrote."""
    return read_card(path, {"run": RunCard, "comparison": ComparisonCard})


def read_card(path: str | os.PathLike[str], kinds: Mapping[str, type[AnyCard]]) -> AnyCard:
    """Read a card of one of these kinds."""
    try:
        with opened(path) as file:
            content = json.loads(file.read())
    except FileNotFoundError:
        raise UserError(f"there is no result card at {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a result card: it is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a result card: it holds no JSON object")
    kind, version = content.get("kind"), content.pop("version", CARD_VERSION)  # files from before it have none
    if version != CARD_VERSION:
        raise not_this_version(path, version, CARD_VERSION)
    if not isinstance(kind, str) or kind not in kinds:
        found = f"its kind is {kind!r:.40}" if "kind" in content else "it lacks kind"
        raise UserError(f"{path} is not a result card: {found}, which must be {' or '.join(map(repr, kinds))}")
    try:
        card = kinds[kind].model_validate(_sound(content))
        card.check()
    except ValueError as error:
        fault = _first_fault(error) if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{path} is not a {kind} card: {plain(fault):.200}") from error
    return card


def _sound(value: Any, levels: int = 64) -> Any:
    """The same. Raises ValueError for tables and lists on more levels, and for halves of characters."""
    if not levels:
        raise ValueError("it is nested too deeply")
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict | list):
        for part in (*value, *value.values()) if isinstance(value, dict) else value:
            _sound(part, levels - 1)
    return value


def _label(model: ModelKind, num_sleep_passes: int, settings: Mapping[str, str]) -> str:
    name = model if model == "transformer" else f"N = {num_sleep_passes} ({model})"
    return f"{name}, {settings_label(settings)}" if settings else name


def depth_name(recipe: dict[str, Any]) -> str:
    """The name of what "depth" counts in a recipe's task, as that says it; "depth" where it is not known.

    Raises:
        OutsideError: the task is from outside the package, and is not here.
    """
    task = recipe.get("task")
    name = task.get("name") if isinstance(task, dict) else None
    found = find_task(name) if isinstance(name, str) else None
    return "depth" if found is None else found.depth_name


def group_of(item: RunCard | Result) -> tuple[bool, int, str, tuple[tuple[str, str], ...]]:
    """The key by which runs are grouped."""
    return item.model != "transformer", item.num_sleep_passes, item.model, tuple(item.settings.items())


def headline(score: dict[str, Any], metric: Metric) -> float:
    """The accuracy in a score that a metric names."""
    if metric == "deepest":
        return float(score["by_depth"][max(score["by_depth"], key=float)]["accuracy"])
    return float(score[f"{metric}_accuracy"])


def headline_chance(chance: Chance, depths: Sequence[str], metric: Metric) -> float:
    """The value of that accuracy for guessing; per question it is the mean over the depths that were asked."""
    if metric == "exact":
        return chance.exact
    asked = depths[-1:] if metric == "deepest" else depths
    return statistics.fmean(chance.by_depth[d] for d in asked)


def rounded(value: Any) -> Any:
    """Floats to 5 significant digits, except in recipes; NaN and infinities as strings, which JSON lacks."""
    if isinstance(value, float):
        return float(f"{value:.{_SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: part if key == "recipe" else rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return value


def _layout(value: Any, indent: int = 0) -> str:
    """JSON, indented by 1 per level; what fits on a line stays on one."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or indent + len(line) <= _LINE_WIDTH:
        return line
    if isinstance(value, dict):
        parts = [f"{json.dumps(key, ensure_ascii=False)}: {_layout(part, indent + 1)}" for key, part in value.items()]
    else:
        parts = [_layout(part, indent + 1) for part in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    gap = "\n" + " " * (indent + 1)
    return f"{opening}{gap}{f',{gap}'.join(parts)}\n{' ' * indent}{closing}"


def _first_fault(error: ValidationError) -> str:
    """The missing fields, or else the first field that is wrong, in half a sentence."""
    faults = error.errors(include_url=False)
    missing = [".".join(map(str, fault["loc"])) for fault in faults if fault["type"] == "missing"]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        return f"it lacks {', '.join(missing[:3])}{more}"
    field = ".".join(map(str, faults[0]["loc"]))
    if faults[0]["type"] == "extra_forbidden":
        return f"it has an unknown field {field}"
    return f"{field}: {faults[0]['msg'][:1].lower()}{faults[0]['msg'][1:]}"
