"""The same recipe with several models, numbers of passes and seeds: one process a run, then one card for all."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

from reverie.errors import UserError
from reverie.recipe import Recipe, changed
from reverie.results.card import ComparisonCard, Metric, RunCard, load_card, save_card
from reverie.results.comparison import compare_runs
from reverie.results.run import CARD_NAME, model_kind
from reverie.train.worker import Event, child, finished

FIGURE_NAME = "figure.png"


@dataclass(frozen=True)
class Run:
    """One run of a comparison."""

    name: str
    recipe: Recipe
    out: Path


def plan_runs(
    recipe: Recipe, passes: Sequence[int], seeds: Sequence[int], out: Path, *, transformer: bool
) -> list[Run]:
    """Every number of passes with every seed, and the transformer baseline with every seed.

    The longest runs come first, so that no core is left waiting for one at the end.

    Raises:
        UserError: a number is out of range, or the recipe has no layers that could sleep.
    """
    if model_kind(recipe) == "transformer":
        raise UserError(
            f"{recipe.name} has attention layers alone, so the number of sleep passes changes nothing: there is "
            "nothing to compare"
        )
    if recipe.train.num_sleep_passes is not None and len(set(passes)) > 1:
        raise UserError(
            f"{recipe.name} draws its passes anew for every step, so runs with other passes would be the same one: "
            "give the one number to score it with"
        )
    runs = []
    for seed in dict.fromkeys(seeds):
        for n in dict.fromkeys(passes):
            runs.append(_run(changed(recipe, sleep={"num_sleep_passes": n}, train={"seed": seed}), out))
        if transformer:
            runs.append(_run(changed(_baseline(recipe), train={"seed": seed}), out))
    return sorted(runs, key=lambda run: -run.recipe.sleep.num_sleep_passes)


def _baseline(recipe: Recipe) -> Recipe:
    """The transformer: attention in all layers, and every step trains everything, there being no fast weights.

    Stages for fast weights alone are left out and the others take their steps: the eviction of such a stage is there to
    teach fast weights, and a transformer would lose those steps. If it is the last one it stays, for its eviction is
    the one the model is used with.
    """
    stages = recipe.train.stages
    kept = [stage for stage in stages[:-1] if stage.parameters == "all"] + list(stages[-1:])
    return changed(
        recipe,
        model={"layers": ["attn"] * len(recipe.hybrid.layers)},
        sleep={"num_sleep_passes": 1},
        train={"num_sleep_passes": None, "stages": [{**stage.model_dump(), "parameters": "all"} for stage in kept]},
    )


def _run(recipe: Recipe, out: Path) -> Run:
    kind = model_kind(recipe)
    name = kind if kind != "sleep" else f"sleep-{recipe.sleep.num_sleep_passes}"
    name += f"-seed-{recipe.train.seed}"
    return Run(name, recipe, out / name)


def compare(
    name: str,
    metric: Metric,
    runs: Sequence[Run],
    out: Path,
    *,
    jobs: int,
    device: str = "cpu",
    report: Callable[[Run, Event], None] = lambda run, event: None,
) -> ComparisonCard:
    """Train what is not trained yet, `jobs` runs at a time; leave card and figure in `out`.

    Finished runs in `out` are used as they are and broken-off ones go on where they stopped.

    Raises:
        UserError: a run failed; the others that were going are stopped, and can be taken up again.
    """
    waiting = [run for run in runs if finished(run.recipe, run.out) is None]
    going: dict[Any, tuple[Run, BaseProcess]] = {}
    with (
        contextlib.ExitStack() as children,
        contextlib.ExitStack() as stops,  # all at once, before any is waited for: each still finishes its step
    ):
        while waiting or going:
            while waiting and len(going) < jobs:
                run = waiting.pop(0)
                process, events = children.enter_context(child(run.recipe, run.out, device))
                stops.callback(process.terminate)
                going[events] = run, process
            for events in wait([*going]):
                run, process = going[events]
                try:
                    event = cast(Any, events).recv()
                except (EOFError, OSError):  # it has ended, perhaps killed while it sent
                    del going[events]
                    process.join()
                    event = f"its process ended (exit code {process.exitcode})" if process.exitcode else None
                if isinstance(event, str):
                    raise UserError(f"run {run.name} failed: {event}")
                if event is not None:
                    report(run, event)
    cards = [load_card(run.out / CARD_NAME) for run in runs]
    card = compare_runs(name, metric, [card for card in cards if isinstance(card, RunCard)])
    save_card(card, out / CARD_NAME)
    from reverie.results.plots import figure, save_figure  # half a second that no other command need wait

    save_figure(figure(card), out / FIGURE_NAME)
    return card
