"""The GSM-Infinite generator: is every problem solvable, and how fast is it?

    python benchmarks/gsm_infinite.py --out results/gsm_infinite/generator.json

writes 100,000 problems, solves each from its text alone with a solver that shares no code with the generator, and
measures the speed of one core. No speed is reported if a single problem is not solved.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import publish
from rich.console import Console
from rich.progress import track

from reverie.bench.card import outcome
from reverie.pretrained.smollm2 import load_smollm2
from reverie.tasks.data import ProblemRows, write_data
from reverie.tasks.gsm_infinite import ProblemConfig, draw_problem
from reverie.tasks.gsm_infinite.check import check_problems
from reverie.tasks.gsm_infinite.task import token_counter

SEED = 0
PADDED_LENGTH = (2000, 3300)
PARTS = (  # what problems are checked, and their shares
    (ProblemConfig(min_operations=2, max_operations=8), 0.84),
    (ProblemConfig(levels=("hard",), max_operations=30), 0.10),
    (ProblemConfig(min_operations=2, max_operations=8, length=PADDED_LENGTH), 0.06),
)
UNPADDED_TARGET, PADDED_TARGET = 2000.0, 300.0  # problems per second and core


def main() -> None:
    arguments, origin = _arguments(), publish.begin()
    problems, complaints = 0, list[str]()
    with tempfile.TemporaryDirectory() as folder:
        for i, (config, share) in enumerate(track(PARTS, "checking", console=Console(stderr=True))):
            rows, place = ProblemRows(problems=config, split="train", seed=SEED), Path(folder, f"{i}.jsonl")
            write_data(rows, round(arguments.count * share), place, workers=arguments.workers)
            found = check_problems(place)
            problems += found.problems
            complaints += [f"{config.model_dump_json()}: {complaint}" for complaint in found.complaints]
    if complaints:
        sys.exit(f"error: {len(complaints)} faults in {problems} problems; the first is {complaints[0]}")
    card = {
        "kind": "generator",
        "name": "gsm_infinite/generator",
        "seed": SEED,
        **origin(),
        "problems": problems,
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
