"""Is a run that is killed again and again, and resumed, the run without the kills, to the last bit?

    python benchmarks/kills.py depo/nano --set train.checkpoint_every=50 --out results/reliability/kills.json

trains the recipe twice, at the same time: once without a break, and once in a process that gets SIGKILL at random
moments, 20 by default, and is started again each time. Then compares weights, optimiser states, curve and final score,
and leaves a card.
"""

import argparse
import contextlib
import math
import random
import signal
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import publish
import torch
from rich.console import Console
from rich.progress import track

from reverie.bench.card import outcome
from reverie.errors import UserError
from reverie.recipe import Recipe, load_recipe
from reverie.results.card import RunCard, load_card
from reverie.results.checkpoint import FILE_NAME, load_checkpoint
from reverie.results.run import CARD_NAME
from reverie.train.worker import child

SEED = 0  # of the moments


def main() -> None:
    arguments = _arguments()
    recipe = load_recipe(arguments.recipe, arguments.set)
    most = recipe.train.steps - 1
    if not 1 <= arguments.kills <= most:
        raise UserError(f"--kills must be 1 to {most}, for each strikes at a step of its own, got {arguments.kills}")
    origin = publish.begin()
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        with child(recipe, whole, interval_s=math.inf) as (undisturbed, events):
            try:
                starts = kill_and_resume(recipe, killed, arguments.kills)
                follow(events)
                undisturbed.join()
            finally:
                undisturbed.kill()
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


def kill_and_resume(recipe: Recipe, out: Path, kills: int) -> list[dict[str, Any]]:
    """Train with that many kills; returns for each start of the process what became of it.

    Moments are drawn uniformly over the run: a step, and then some part of the time that the one before took.
    """
    moments, starts = random.Random(SEED), []
    steps = sorted(moments.sample(range(1, recipe.train.steps), kills))
    for target in track([*steps, None], "killing", console=Console(stderr=True)):
        from_step = load_checkpoint(out / FILE_NAME).progress.step if (out / FILE_NAME).exists() else 0
        with child(recipe, out, interval_s=0) as (process, events):
            step, step_time = follow(events, target)
            if target is not None:
                time.sleep(moments.random() * step_time)
                process.kill()
                step = max(step, follow(events)[0])
        if process.exitcode != (0 if target is None else -signal.SIGKILL):
            sys.exit(f"error: a run ended by itself after step {step}, with exit code {process.exitcode}")
        killed_after = None if target is None else step
        unfinished = any(".tmp" in path.name for path in out.iterdir())
        starts.append({"from_step": from_step, "killed_after_step": killed_after, "in_a_write": unfinished})
    return starts


def follow(events: Connection, target: int | None = None) -> tuple[int, float]:
    """The newest step, once `target` is done or the process has ended, and the seconds that a step takes."""
    first, step, begun = 0, 0, 0.0
    with contextlib.suppress(EOFError, OSError):
        while target is None or step < target:
            event = events.recv()
            if isinstance(event, str):
                sys.exit(f"error: a run failed: {event}")
            step = event.step
            if not first:
                first, begun = step, time.perf_counter()
    return step, (time.perf_counter() - begun) / max(step - first, 1) if first else 0.0


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
