"""The same recipe with several models, numbers of passes and seeds: one process a run, then one card for all."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reverie.errors import UserError
from reverie.recipe import Recipe, changed
from reverie.results.card import ComparisonCard, Metric, RunCard, load_card, save_card
from reverie.results.comparison import compare_runs
from reverie.results.run import CARD_NAME, model_kind
from reverie.train.worker import Event, finished

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
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.ExitStack() as children,
        contextlib.ExitStack() as stops,  # all at once, before any is waited for: each still finishes its step
    ):
        events: queue.Queue[tuple[Run, dict[str, Any] | None]] = queue.Queue()
        going = 0
        while waiting or going:
            while waiting and going < jobs:
                process = children.enter_context(_child(waiting.pop(0), device, Path(folder), events))
                stops.callback(process.terminate)
                going += 1
            run, event = events.get()
            if event is None:
                going -= 1
            elif "error" in event:
                raise UserError(f"run {run.name} failed: {event['error']}")
            else:
                report(run, Event(**event))
    cards = [load_card(run.out / CARD_NAME) for run in runs]
    card = compare_runs(name, metric, [card for card in cards if isinstance(card, RunCard)])
    save_card(card, out / CARD_NAME)
    from reverie.results.plots import figure, save_figure  # half a second that no other command need wait

    save_figure(figure(card), out / FIGURE_NAME)
    return card


@contextlib.contextmanager
def _child(
    run: Run, device: str, folder: Path, events: queue.Queue[tuple[Run, dict[str, Any] | None]]
) -> Iterator[subprocess.Popen[str]]:
    """A process for the run, with one thread; its events arrive in the queue, None last."""
    job = folder / f"{run.name}.json"
    content = {"recipe": run.recipe.model_dump(mode="json"), "out": str(run.out), "device": device}
    job.write_text(json.dumps(content), encoding="utf-8")
    # PASSIVE: spinning threads of two runs would slow each other down several times
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.Popen(
        [sys.executable, "-m", "reverie.train.worker", str(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    complaints: list[str] = []
    assert process.stdout is not None
    assert process.stderr is not None
    errors = threading.Thread(target=lambda stream: complaints.extend(stream), args=(process.stderr,), daemon=True)

    def listen(stream: Iterator[str]) -> None:
        told = False
        for line in stream:
            try:
                event = dict(json.loads(line))
            except (ValueError, TypeError):  # some library prints
                continue
            told = told or "error" in event
            events.put((run, event))
        errors.join()
        if process.wait() != 0 and not told:
            spoken = [line.strip() for line in complaints if line.strip()]
            reason = spoken[-1] if spoken else f"exit code {process.returncode}"
            events.put((run, {"error": f"its process ended ({reason})"}))
        events.put((run, None))

    listener = threading.Thread(target=listen, args=(process.stdout,), daemon=True)
    errors.start()
    listener.start()
    try:
        yield process
    finally:
        process.wait()
        listener.join()
