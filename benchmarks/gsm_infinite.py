"""The GSM-Infinite generator: is every problem solvable, and how fast is it?

    python benchmarks/gsm_infinite.py --out results/gsm_infinite/generator.json

draws 100,000 problems, solves each from its text alone with a solver that shares no code with the generator, and
measures the speed of one core. No speed is reported if a single problem is not solved.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from itertools import product
from multiprocessing import Pool
from typing import Any, NamedTuple, get_args

import publish
from rich.console import Console
from rich.progress import track

from reverie.bench.card import outcome
from reverie.pretrained.smollm2 import load_smollm2
from reverie.tasks.gsm_infinite import ProblemConfig, draw_problem
from reverie.tasks.gsm_infinite.core import Level, Mode
from reverie.tasks.gsm_infinite.parser import parse
from reverie.tasks.gsm_infinite.solver import work_out
from reverie.tasks.gsm_infinite.task import token_counter
from reverie.tasks.gsm_infinite.worlds import WorldName

SEED = 0
ALL_WORLDS: tuple[WorldName, ...] = get_args(WorldName)
LEVELS: tuple[Level, ...] = get_args(Level)
MODES: tuple[Mode, ...] = get_args(Mode)
OPERATIONS = range(2, 9)
DEEP = range(1, 31)
PADDED_LENGTH = (2000, 3300)
UNPADDED_TARGET, PADDED_TARGET = 2000.0, 300.0  # problems per second and core
CHUNK = 250


class Cell(NamedTuple):
    """Problems of one kind."""

    worlds: tuple[WorldName, ...]
    level: Level
    mode: Mode
    operations: int
    padded: bool


def main() -> None:
    arguments, origin = _arguments(), publish.begin()
    chunks = _chunks(arguments.count)
    with Pool(arguments.workers) as pool:
        work = pool.imap(unsolved, chunks)
        wrong = [text for found in track(work, "checking", len(chunks), console=Console(stderr=True)) for text in found]
    count = sum(len(indices) for _, indices in chunks)
    if wrong:
        sys.exit(f"error: {len(wrong)} of {count} problems are not solved; the first is {wrong[0]}")
    card = {
        "kind": "generator",
        "name": "gsm_infinite/generator",
        "seed": SEED,
        **origin(),
        "problems": count,
        "problems_per_second": speed(),
    }
    publish.publish(arguments, card, sentence, result)


def _arguments() -> argparse.Namespace:
    parser = publish.options(__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="problems to check")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    arguments = parser.parse_args()
    if arguments.count < 1000:
        parser.error(f"--count must be at least 1000, got {arguments.count}: less says nothing about rare sentences")
    if arguments.workers < 1:
        parser.error(f"--workers must be at least 1, got {arguments.workers}")
    return arguments


def _chunks(count: int) -> list[tuple[Cell, range]]:
    """Cells and indices of at least `count` problems: 10 % of 1 to 30 operations, 6 % padded, the rest neither."""
    cells = [
        Cell((world,), level, mode, operations, False)
        for world, level, mode, operations in product(ALL_WORLDS, LEVELS, MODES, OPERATIONS)
    ]
    padded = [cell._replace(padded=True) for cell in cells]
    deep = [Cell(ALL_WORLDS, "hard", mode, n, False) for mode, n in product(MODES, DEEP)]
    chunks = []
    for group, share in ((cells, 0.84), (deep, 0.10), (padded, 0.06)):
        each = -(-round(count * share) // len(group))
        chunks += [(cell, range(first, min(first + CHUNK, each))) for cell in group for first in range(0, each, CHUNK)]
    return chunks


def unsolved(chunk: tuple[Cell, range]) -> list[str]:
    """Texts of the problems whose answer or number of operations the solver does not find in the text."""
    cell, indices = chunk
    config = ProblemConfig(
        worlds=cell.worlds,
        levels=(cell.level,),
        modes=(cell.mode,),
        max_operations=30,
        length=PADDED_LENGTH if cell.padded else None,
    )
    measure, wrong = token_counter(load_smollm2()), []
    for index in indices:
        problem = draw_problem(config, "train", SEED, cell.operations, index, cell.operations, measure=measure)
        try:
            solution = work_out(parse(problem.problem, problem.question))
            if (solution.answer, solution.operations) != (problem.answer, problem.operations):
                wrong.append(f"{problem.prompt} {problem.answer}, not {solution.answer}")
        except ValueError as error:
            wrong.append(f"{problem.prompt} {problem.answer}: {error}")
    return wrong


def speed(seconds: float = 5.0) -> dict[str, float]:
    """Problems per second of one process: over all worlds, levels and modes, and 1 to 8 operations in turn."""
    measure = token_counter(load_smollm2())
    rates = {}
    for name, length in (("unpadded", None), ("padded", PADDED_LENGTH)):
        config = ProblemConfig(length=length)
        drawn, started = 0, 0.0
        while drawn < 64 or time.perf_counter() - started < seconds:
            if drawn == 0:
                started = time.perf_counter()
            draw_problem(config, "train", SEED + 1, 0, drawn, 1 + drawn % 8, measure=measure)
            drawn += 1
        rates[name] = round(drawn / (time.perf_counter() - started), 1)
    return rates


def result(card: dict[str, Any]) -> dict[str, Any]:
    """The speed over its target, the worse of both."""
    rates = card["problems_per_second"]
    ratio = min(rates["unpadded"] / UNPADDED_TARGET, rates["padded"] / PADDED_TARGET)
    details = {key: card[key] for key in ("problems", "problems_per_second", "hardware")}
    return outcome(card["name"], round(ratio, 2), 1.0, ratio >= 1.0, details)


def sentence(card: dict[str, Any]) -> str:
    rates = card["problems_per_second"]
    return (
        f"{card['problems']:,} problems, all solved from their text. One core makes {rates['unpadded']:,.0f} unpadded "
        f"or {rates['padded']:,.0f} padded problems a second."
    )


if __name__ == "__main__":
    publish.run(main)
