"""Is a run that is killed again and again, and resumed, the run without the kills, to the last bit?

    python benchmarks/kills.py depo/nano --set train.checkpoint_every=50 --out results/reliability/kills.json

trains the recipe twice, at the same time: once without a break, and once in a process that gets SIGKILL at random
moments, 20 by default, and is started again each time. Then compares weights, optimiser states, curve and final score,
and leaves a card.
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
    publish.publish(arguments, card, sentence, result)


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

    Moments are drawn uniformly over the run: a step, and then some part of the time that the one before took.
    """
    moments, starts = random.Random(SEED), []
    steps = sorted(moments.sample(range(1, recipe.train.steps), kills))
    for target in track([*steps, None], "killing", console=Console(stderr=True)):
        from_step = load_checkpoint(out / FILE_NAME).progress.step if (out / FILE_NAME).exists() else 0
        with running(recipe, out) as run:
            step_time = _follow(run, target)
            if target is None:
                _check_finished(run)
            else:
                time.sleep(moments.random() * step_time)
                run.process.kill()
                run.process.join()
                if run.process.exitcode != -signal.SIGKILL:
                    _check_finished(run)
                    sys.exit(f"error: the run ended before it could be killed after step {target}: give it more steps")
        killed_after = None if target is None else run.step.value
        unfinished = any(".tmp" in path.name for path in out.iterdir())
        starts.append({"from_step": from_step, "killed_after_step": killed_after, "in_a_write": unfinished})
    return starts


def _follow(run: Running, target: int | None) -> float:
    """Seconds of a step, once the step `target` is done, or the process has ended."""
    first, begun = 0, 0.0
    while run.process.is_alive():
        step = run.step.value
        if step and not first:
            first, begun = step, time.perf_counter()
        if target is not None and step >= target:
            return (time.perf_counter() - begun) / max(step - first, 1)
        time.sleep(POLL_S)
    return 0.0


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


if __name__ == "__main__":
    publish.run(main)
