"""`python benchmarks/controls`: see the package."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # Python has put this folder itself there

import publish

import controls
from controls.card import card_of, figure, text
from controls.cells import CONTROLS, Cell, cell_of, check, run
from controls.costs import costs, more_steps
from reverie.errors import UserError
from reverie.interrupts import exit_code
from reverie.recipe import Recipe, load_recipe
from reverie.results.card import RunCard

PACE = "seconds-a-step.json"


def main(words: Sequence[str] | None = None) -> int:
    """Run what is missing, then write cards; the exit code."""
    torch.set_num_threads(1)  # small matrices: more threads are slower
    arguments = _arguments(words)
    try:
        seeds, names = _seeds(arguments.seeds), _names(arguments.controls)
        recipes = [load_recipe(task, arguments.set) for task in arguments.tasks.split(",")]
        for recipe in recipes:
            check(recipe)
        for recipe in recipes:
            _of_task(recipe, names, seeds, arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print(f"\n{str(interruption) or 'stopped'}: the same command goes on", file=sys.stderr)
        return exit_code(interruption)
    return 0


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = publish.options(controls.__doc__, out="folder to write cards and figures to, as the recipes are called")
    parser.add_argument("--tasks", metavar="RECIPES", default="depo/nano,rule110/nano", help="names, or .toml files")
    parser.add_argument("--controls", metavar="NAMES", default=",".join(CONTROLS), help=f"of {', '.join(CONTROLS)}")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override of the recipes")
    parser.add_argument("--runs", type=Path, default=Path("runs/control"), help="where the cells are, or will be")
    return parser.parse_args(words)


def _seeds(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(map(int, text.split(","))))
    except ValueError:
        raise UserError(f"--seeds must be numbers like 0,1,2, got {text!r}") from None


def _names(text: str) -> list[str]:
    for name in (names := text.split(",")):
        if name not in CONTROLS:
            raise UserError(f"there is no control {name!r}: use {', '.join(CONTROLS)}")
    return list(dict.fromkeys(names))


def _of_task(recipe: Recipe, names: Sequence[str], seeds: Sequence[int], arguments: argparse.Namespace) -> None:
    @cache
    def steps(what: str) -> int:
        place = arguments.runs / recipe.name / f"{_digest(recipe)}-{PACE}"
        return more_steps(recipe, place, lambda name: cell(name, seeds[0]), what)

    def cell(name: str, seed: int) -> Cell:
        return cell_of(recipe, name, seed, arguments.runs, steps)

    origin = publish.begin()
    found = {name: [_run(cell, name, seed) for seed in seeds] for name in names}
    own = {name: costs(cell(name, seeds[0]), recipe) for name in names}
    card = card_of(recipe, seeds, found, own) | origin()
    if arguments.out is not None:
        arguments.out.joinpath(recipe.name).parent.mkdir(parents=True, exist_ok=True)
    out = None if arguments.out is None else arguments.out / f"{recipe.name}.json"
    publish.publish(argparse.Namespace(out=out, json=arguments.json), card, text, _result, figure)


def _digest(recipe: Recipe) -> str:
    return hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:8]


def _run(cell: Callable[[str, int], Cell], name: str, seed: int) -> RunCard:
    return run(cell(name, seed), lambda other: cell(other, seed), _report)


def _result(card: dict[str, Any]) -> dict[str, Any]:
    return {name: one["accuracies"] for name, one in card["controls"].items()}


def _report(name: str, step: int, steps: int, loss: float) -> None:
    if step % 10 == 0 or step == steps:
        print(f"\r{name}: step {step}/{steps}, loss {loss:.3f} ", end="" if step < steps else "\n", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
