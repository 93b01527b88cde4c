"""Is a run that is killed again and again, and resumed, the run without the kills, to the last bit?

    python benchmarks/kills.py depo/nano --set train.checkpoint_every=50 --out results/reliability/kills.json

trains the recipe twice, at the same time: once without a break, and once in a process that gets SIGKILL at random
moments, 20 by default, and is started again each time. Then compares weights, optimiser states, curve and final score.
Leaves a card, and a figure of steps over time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import publish
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from reverie.bench.card import outcome
from reverie.errors import UserError
from reverie.recipe import Recipe, load_recipe
from reverie.results.card import RunCard, load_card
from reverie.results.checkpoint import FILE_NAME, Progress, load_checkpoint
from reverie.results.run import CARD_NAME
from reverie.train.run import train

SEED = 0  # of the moments
CONTEXT: Any = multiprocessing.get_context("spawn")  # a fresh interpreter each time, as a user starts it
POLL_S = 0.002
POINTS = 20  # that the figure has of each start


class Running(NamedTuple):
    """A training in a process of its own."""

    process: Any
    step: Any  # the step that it has done last, in shared memory; 0 before the first


def main() -> None:
    arguments = _arguments()
    recipe = load_recipe(arguments.recipe, arguments.set)
    most = recipe.train.steps - 1
    if not 1 <= arguments.kills <= most:
        raise UserError(f"--kills must be 1 to {most}, for each strikes at a step of its own, got {arguments.kills}")
    # Of the processes to come: sums that are split over threads could differ, and two runs share the machine.
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    origin = publish.begin()
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        with running(recipe, whole) as undisturbed:
            starts = kill_and_resume(recipe, killed, arguments.kills)
            undisturbed.process.join()
        _check_finished(undisturbed)
        differing = differences(whole, killed)
        tensors = len(load_checkpoint(whole / FILE_NAME).tensors) - 1  # without the random state
    card = {
        "kind": "kills",
        "name": "reliability/kills",
        "seed": SEED,
        **origin(),
        "recipe": recipe.model_dump(mode="json"),
        "tensors_compared": tensors,
        "differing": differing,
        "starts": starts,
    }
    card["hardware"]["threads"] = 1
    publish.publish(arguments, card, figure, sentence, result)


def _arguments() -> argparse.Namespace:
    parser = publish.options(__doc__)
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", default="depo/nano", help="depo/nano if absent")
    parser.add_argument("--kills", type=int, default=20, help="how often the second run is killed")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override of the recipe")
    return parser.parse_args()


@contextmanager
def running(recipe: Recipe, out: Path) -> Iterator[Running]:
    """A training that begins, or goes on if it has begun; at the end of the context it is gone."""
    step = CONTEXT.Value("l", 0, lock=False)
    process = CONTEXT.Process(target=_live, args=(recipe, out, step))
    process.start()
    try:
        yield Running(process, step)
    finally:
        process.kill()
        process.join()


def _live(recipe: Recipe, out: Path, step: Any) -> None:
    def report(progress: Progress, loss: float) -> None:
        step.value = progress.step

    torch.set_num_threads(1)
    train(recipe, out, resume=(out / FILE_NAME).exists(), report=report)


def kill_and_resume(recipe: Recipe, out: Path, kills: int) -> list[dict[str, Any]]:
    """Train with that many kills; returns for each start of the process what became of it.

    Moments are drawn uniformly over the run: a step, and then some part of the time that the next one takes.
    """
    moments, began = random.Random(SEED), time.perf_counter()
    steps = sorted(moments.sample(range(1, recipe.train.steps), kills))
    starts: list[dict[str, Any]] = []
    for target in track([*steps, None], "killing", console=Console(stderr=True)):
        from_step = load_checkpoint(out / FILE_NAME).progress.step if (out / FILE_NAME).exists() else 0
        started = time.perf_counter() - began
        with running(recipe, out) as run:
            seen = _follow(run, target, began)
            if target is None:
                _check_finished(run)
            else:
                time.sleep(moments.random() * _step_time(seen))
                run.process.kill()
                run.process.join()
                if run.process.exitcode != -signal.SIGKILL:
                    _check_finished(run)
                    sys.exit(f"error: the run ended before it could be killed after step {target}: give it more steps")
        every = -(-len(seen) // POINTS)
        starts.append(
            {
                "from_step": from_step,
                "killed_after_step": None if target is None else run.step.value,
                "in_a_write": any(".tmp" in path.name for path in out.iterdir()),
                "started_s": round(started, 3),
                "ended_s": round(time.perf_counter() - began, 3),
                "seen": seen[::-every][::-1],  # [seconds, step], the last one in any case
            }
        )
    return starts


def _follow(run: Running, target: int | None, began: float) -> list[list[float]]:
    """When each step was done, until the step `target` is, or the process ends: [seconds, step]."""
    seen: list[list[float]] = []
    while run.process.is_alive():
        step = run.step.value
        if step and (not seen or step > seen[-1][1]):
            seen.append([round(time.perf_counter() - began, 3), step])
        if target is not None and step >= target:
            break
        time.sleep(POLL_S)
    return seen


def _step_time(seen: list[list[float]]) -> float:
    return (seen[-1][0] - seen[0][0]) / (seen[-1][1] - seen[0][1]) if len(seen) > 1 else 0.0


def _check_finished(run: Running) -> None:
    if run.process.exitcode != 0:
        sys.exit(f"error: a run ended by itself after step {run.step.value}, with exit code {run.process.exitcode}")


def differences(ours: Path, theirs: Path) -> list[str]:
    """What differs between two finished runs, wall times aside: weights, optimiser states, curve, final score.

    Not the random state: nothing in training draws from it, and every process begins with another one.
    """
    a, b = (load_checkpoint(folder / FILE_NAME) for folder in (ours, theirs))
    names = sorted((a.tensors.keys() | b.tensors.keys()) - {"rng"})
    differing = [
        name
        for name in names
        if name not in a.tensors or name not in b.tensors or not torch.equal(a.tensors[name], b.tensors[name])
    ]
    if _timeless(vars(a.progress)) != _timeless(vars(b.progress)):
        differing.append("curve")
    if _score(ours) != _score(theirs):
        differing.append("score")
    return differing


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(part) for key, part in value.items() if key != "wall_time_s"}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


def _score(out: Path) -> Any:
    card = load_card(out / CARD_NAME)
    assert isinstance(card, RunCard)
    return card.score


def result(card: dict[str, Any]) -> dict[str, Any]:
    """1.0 if the run with the kills is the one without, to the last bit."""
    ratio = 0.0 if card["differing"] else 1.0
    details = {
        "recipe": card["recipe"]["name"],
        "steps": card["recipe"]["train"]["steps"],
        "killed_after_steps": _struck(card),
        "kills_in_a_write": sum(start["in_a_write"] for start in card["starts"]),
        **{key: card[key] for key in ("tensors_compared", "differing", "wall_time_s", "hardware")},
    }
    return outcome(card["name"], ratio, 1.0, ratio >= 1.0, details)


def _struck(card: dict[str, Any]) -> list[int]:
    return [start["killed_after_step"] for start in card["starts"] if start["killed_after_step"] is not None]


def sentence(card: dict[str, Any]) -> str:
    struck = _struck(card)
    what = f"differs in {', '.join(card['differing'])}" if card["differing"] else "is the same run to the last bit"
    return f"{card['recipe']['name']}, killed {len(struck)} times (after steps {', '.join(map(str, struck))}), {what}"


def figure(card: dict[str, Any]) -> Figure:
    """Steps over time: a line for each start, from the checkpoint it found, and a cross where it was killed."""
    drawing = Figure(figsize=(7, 3.8), layout="constrained")
    axes = drawing.subplots()
    starts = card["starts"]
    ends = [start["ended_s"] for start in starts]
    unit, name = (60.0, "minutes") if ends[-1] > 300 else (1.0, "seconds")
    for start in starts:
        points = [(start["started_s"], start["from_step"]), *start["seen"]]
        if start["killed_after_step"] is not None:
            points.append((start["ended_s"], start["killed_after_step"]))
        axes.plot([t / unit for t, _ in points], [step for _, step in points], color="#7aa6c2", linewidth=1.5)
    killed = [start for start in starts if start["killed_after_step"] is not None]
    marks = [start["ended_s"] / unit for start in killed], [start["killed_after_step"] for start in killed]
    axes.plot(*marks, "x", color="#c2410c", markersize=6, label="SIGKILL", clip_on=False)
    axes.set_xlabel(name)
    axes.set_ylabel("steps done")
    axes.set_xlim(left=0)
    axes.set_ylim(0, card["recipe"]["train"]["steps"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    outcome = "not the same run as" if card["differing"] else "bit-identical to"
    title = f"{card['recipe']['name']}, killed {len(killed)} times and resumed: {outcome} the run without a break"
    drawing.suptitle(title, x=0.01, ha="left", fontsize=10)
    return drawing


if __name__ == "__main__":
    publish.run(main)
