"""Any N at sleep time: trained models evaluated at several numbers of sleep passes, and with adaptive sleep."""

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch

from reverie.errors import UserError
from reverie.model import LanguageModel, count_parameters
from reverie.recipe import Recipe, changed
from reverie.recipe.random_passes import RandomPasses
from reverie.results.card import Report, RunCard, headline_chance, load_card
from reverie.results.checkpoint import Progress
from reverie.results.evaluate import evaluate
from reverie.results.passes.card import Evaluated, PassesCard, PassesRun, Training, regime_label, regimes_of
from reverie.results.provenance import commit_id, hardware
from reverie.results.run import CARD_NAME, chance_of, load_run, trained_model
from reverie.results.settings import differences
from reverie.sleep import SleepConfig

_TRAINED_WITH = {"sleep.num_sleep_passes", "train.num_sleep_passes"}


class _Found(NamedTuple):
    """A run on disk."""

    place: Path
    recipe: Recipe
    settings: dict[str, str]

    @property
    def trained_with(self) -> int | RandomPasses:
        return self.recipe.train.num_sleep_passes or self.recipe.sleep.num_sleep_passes

    @property
    def label(self) -> str:
        return regime_label(self.trained_with, self.settings)

    @property
    def order(self) -> tuple[int, str, int]:
        """The key that sorts fixed N first, ascending, then random ones; by seed."""
        N = self.trained_with if isinstance(self.trained_with, int) else sys.maxsize
        return N, self.label, self.recipe.train.seed


def evaluate_passes(
    runs: Sequence[Path],
    numbers: Sequence[int],
    tolerances: Sequence[float] = (),
    *,
    num_examples: int | None = None,
    device: torch.device | str = "cpu",
    report: Report = lambda done, total, what: None,
) -> PassesCard:
    """The card of runs whose checkpoints are evaluated at these N, on the same held-out examples and on one thread.

    Args:
        tolerances: of adaptive sleep, for which the largest N is the most passes.
        num_examples: the largest number in the recipes if absent.

    Raises:
        UserError: a number is out of range, there is no run, one has no fast weights, the runs are of different tasks
            or metrics, or two do not differ at all.
    """
    recipes = [load_run(run).recipe for run in runs]
    told = differences([recipe.model_dump(mode="json") for recipe in recipes], but=_TRAINED_WITH)
    found = sorted(map(_Found, runs, recipes, told), key=lambda run: run.order)
    _require_comparable(found)
    settings = list[list[SleepConfig]]()
    for run in found:
        fixed = [changed(run.recipe, sleep={"num_sleep_passes": n}).sleep for n in sorted(set(numbers))]
        settings.append(fixed + [fixed[-1].with_(tolerance=x) for x in sorted(set(tolerances), reverse=True)])
    examples = num_examples or max(run.recipe.train.eval_examples for run in found)
    done, total, started = count(), sum(map(len, settings)), time.perf_counter()

    def before(what: str) -> None:
        report(next(done), total, what)

    with _one_thread():
        evaluated = [_evaluate(run, own, examples, device, before) for run, own in zip(found, settings, strict=True)]
        return _card(found[0].recipe, evaluated, examples, time.perf_counter() - started)


def _require_comparable(runs: Sequence[_Found]) -> None:
    """Raise UserError unless all sleep, with one task and metric, and no two are the same."""
    if not runs:
        raise UserError("there is no run to evaluate")
    for run in runs:
        if not run.recipe.model.has_fast_weights:
            raise UserError(f"{run.place} has attention layers alone: the number of sleep passes changes nothing")
        both = f"{runs[0].place} and {run.place} cannot be in one figure"
        if run.recipe.task != runs[0].recipe.task:
            raise UserError(f"{both}: they were trained on other tasks")
        metrics = [recipe.train.metric for recipe in (runs[0].recipe, run.recipe)]
        if metrics[0] != metrics[1]:
            raise UserError(f"{both}: train.metric is {metrics[0]} in one and {metrics[1]} in the other")
    (label, seed), number = Counter((run.label, run.recipe.train.seed) for run in runs).most_common(1)[0]
    if number > 1:
        raise UserError(f"there are {number} runs trained with {label} and seed {seed}; give one per seed")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Small models are fastest on one thread, and rounding, which decides what wakes up when, is the same anywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _evaluate(
    run: _Found,
    settings: Sequence[SleepConfig],
    examples: int,
    device: torch.device | str,
    report: Callable[[str], None],
) -> PassesRun:
    """One run at all settings."""
    checkpoint = load_run(run.place)
    model = trained_model(checkpoint, device)
    points = []
    for sleep in settings:
        setting = f"N = {sleep.num_sleep_passes}" if sleep.tolerance is None else f"tolerance {sleep.tolerance:g}"
        report(f"{run.label}, seed {run.recipe.train.seed}: {setting}")
        points.append(_point(model, run, sleep, examples, device))
    return PassesRun(
        name=run.recipe.name,
        seed=run.recipe.train.seed,
        trained_with=run.trained_with,
        settings=run.settings,
        parameters=count_parameters(model),
        recipe=run.recipe.model_dump(mode="json"),
        training=_training(run, checkpoint.progress),
        fixed=[point for point in points if point.tolerance is None],
        adaptive=[point for point in points if point.tolerance is not None],
    )


def _point(
    model: LanguageModel, run: _Found, sleep: SleepConfig, examples: int, device: torch.device | str
) -> Evaluated:
    started = time.perf_counter()
    found = evaluate(model, run.recipe.task, sleep, examples, generate=True, device=device)
    if not found.windows:
        raise UserError(
            f"{run.place} never sleeps: its windows of {sleep.window_size} tokens all hold questions, so the number of "
            "passes changes nothing"
        )
    return Evaluated(
        num_sleep_passes=sleep.num_sleep_passes,
        tolerance=sleep.tolerance,
        mean_passes=found.mean_passes,
        wall_time_s=time.perf_counter() - started,
        score=found.score.summary(),
    )


def _training(run: _Found, progress: Progress) -> Training:
    """Length of a run's training; commit and hardware come from its own card, if that is of this training."""
    training = Training(steps=progress.step, tokens=progress.tokens, wall_time_s=progress.wall_time_s)
    with contextlib.suppress(UserError):
        card = load_card(run.place / CARD_NAME)
        if isinstance(card, RunCard) and (card.steps, card.seed) == (progress.step, run.recipe.train.seed):
            return training.model_copy(update={"commit": card.commit, "hardware": card.hardware})
    return training


def _card(recipe: Recipe, runs: list[PassesRun], examples: int, wall_time_s: float) -> PassesCard:
    metric, points, chance = recipe.train.metric, runs[0].fixed, chance_of(recipe.task)
    depths = sorted(points[0].score["by_depth"], key=float)
    return PassesCard(
        name=" and ".join(dict.fromkeys(run.name for run in runs)),
        metric=metric,
        num_sleep_passes=[point.num_sleep_passes for point in points],
        tolerances=[point.tolerance for point in runs[0].adaptive if point.tolerance is not None],
        examples=examples,
        commit=commit_id(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware=hardware(),
        wall_time_s=wall_time_s,
        chance=chance,
        metric_chance=headline_chance(chance, depths, metric),
        regimes=regimes_of(runs, metric),
        runs=runs,
    )
