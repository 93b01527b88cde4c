"""The GSM-Infinite generator: is every problem solvable, how fast is it, and does it look like the benchmark?

    python benchmarks/gsm_infinite.py --out results/gsm_infinite/generator.json

draws 100,000 problems, solves each from its text alone with a solver that shares no code with the generator, counts
what they are made of, and measures the speed of one core. Leaves a card, and prints the tables of
docs/GSM_INFINITE.md. No speed is reported if a single problem is not solved.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args

import publish
from rich.console import Console
from rich.progress import track

from reverie.bench.card import outcome
from reverie.bench.tables import markdown_table
from reverie.pretrained.smollm2 import load_smollm2
from reverie.tasks.gsm_infinite import Problem, ProblemConfig, draw_problem
from reverie.tasks.gsm_infinite.core import Level, Mode
from reverie.tasks.gsm_infinite.parser import is_total, parse
from reverie.tasks.gsm_infinite.solver import work_out
from reverie.tasks.gsm_infinite.worlds import WorldName

SEED = 0
ALL_WORLDS: tuple[WorldName, ...] = get_args(WorldName)
LEVELS: tuple[Level, ...] = get_args(Level)
MODES: tuple[Mode, ...] = get_args(Mode)
OPERATIONS = range(2, 9)  # what the benchmark's figures were measured on
DEEP = range(1, 31)
PADDED_LENGTH = (2000, 3300)
UNPADDED_TARGET, PADDED_TARGET = 2000.0, 300.0  # problems per second and core
CHUNK = 250

# Measured on 7,560 problems of the public generator (Infini-AI-Lab/gsm_infinite at caa5388), operations 2 to 8.
KINDS = ("INT", "Y", "c+Y", "c*Y", "sum2", "diff2", "c sum2", "c diff2", "sum3+")
BENCHMARK: dict[str, Any] = json.loads(Path(__file__).with_name("gsm_infinite_public.json").read_text(encoding="utf-8"))


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
    console = Console(stderr=True)
    with ProcessPoolExecutor(arguments.workers) as pool:
        work = pool.map(examine, chunks)
        facts = [fact for found in track(work, "checking", len(chunks), console=console) for fact in found]
    card = {
        "kind": "generator",
        "name": "gsm_infinite/generator",
        "seed": SEED,
        **origin(),
        "problems": len(facts),
        "solved": sum(fact["solved"] for fact in facts),
        "operations_right": sum(fact["operations_right"] for fact in facts),
        "distributions": distributions(facts),
    }
    wrong = [fact for fact in facts if not (fact["solved"] and fact["operations_right"])]
    if wrong:
        sys.exit(f"error: {len(wrong)} of {len(facts)} problems are not solved; the first is {wrong[0]}")
    card["problems_per_second"] = speed()
    publish.publish(arguments, card, markdown, result)


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
    """Cells and indices of at least `count` problems.

    84 % as the benchmark's figures were made, 10 % of 1 to 30 operations, 6 % padded.
    """
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


def draw(cell: Cell, indices: range) -> Iterator[Problem]:
    config = ProblemConfig(
        worlds=cell.worlds,
        levels=(cell.level,),
        modes=(cell.mode,),
        max_operations=30,
        length=PADDED_LENGTH if cell.padded else None,
    )
    measure = lru_cache(maxsize=None)(load_smollm2().count)
    for index in indices:
        yield draw_problem(config, "train", SEED, cell.operations, index, cell.operations, measure=measure)


def examine(chunk: tuple[Cell, range]) -> list[dict[str, Any]]:
    """Solve problems from their text, and say what they are made of."""
    return [_examine(chunk[0], problem) for problem in draw(*chunk)]


def _examine(cell: Cell, problem: Problem) -> dict[str, Any]:
    where = {"cell": cell._replace(mode=problem.mode)._asdict(), "text": None}
    try:
        parsed = parse(problem.problem, problem.question)
        solution = work_out(parsed)
    except ValueError as error:
        return where | {"solved": False, "operations_right": False, "error": str(error), "text": problem.prompt}
    core = problem.core
    ours = len(core.instances)
    # As in the benchmark's figures: without the unknown, and without numbers that are given for totals.
    facts = [fact for fact in parsed.facts if fact.kind != "UNKNOWN" and not is_total(fact.subject)]
    kinds = {True: Counter[str](), False: Counter[str]()}
    for fact in facts:
        kinds[fact.subject in solution.needed][fact.kind] += 1
    return where | {
        "solved": solution.answer == problem.answer,
        "operations_right": solution.operations == problem.operations,
        "answer": solution.answer,
        "needed": dict(kinds[True]),
        "unneeded": dict(kinds[False]),
        "quantities": len(solution.needed),
        "needed_share": sum(not core.parts[q] for q in core.needed) / ours,
        "asked": core.quantities[core.asked].kind,
        "tokens": load_smollm2().count(problem.prompt),
        "decoy": core.decoy is not None,
    }


def distributions(facts: list[dict[str, Any]]) -> dict[str, Any]:
    """The quantities of BENCHMARK, measured on our problems."""
    plain = [f for f in facts if not f["cell"]["padded"] and len(f["cell"]["worlds"]) == 1 and "answer" in f]
    padded = [f for f in facts if f["cell"]["padded"] and "answer" in f]
    groups = {name: [f for f in plain if f"{f['cell']['mode']} {f['cell']['level']}" == name] for name in _GROUPS}
    forward, reverse = ([f for f in plain if f["cell"]["mode"] == mode] for mode in ("forward", "reverse"))
    by_operations = {str(n): [f for f in plain if f["cell"]["operations"] == n] for n in OPERATIONS}
    return {
        "needed": {name: _kinds(group, "needed") for name, group in groups.items()},
        "unneeded": _kinds(plain, "unneeded"),
        "asked": {name: _percent(Counter(f["asked"] for f in group)) for name, group in groups.items()},
        "quantities": {
            n: round(statistics.fmean(f["quantities"] for f in group), 2) for n, group in by_operations.items()
        },
        "needed share": {
            name: round(100 * statistics.fmean(f["needed_share"] for f in group)) for name, group in groups.items()
        },
        "constant": {"forward": _constants(forward), "reverse": _constants(reverse)},
        "above 20": round(100 * statistics.fmean(f["answer"] > 20 for f in forward), 1),
        "reverse answers": _percent(Counter(str(f["answer"]) for f in reverse), digits=1),
        "decoys": round(100 * statistics.fmean(f["decoy"] for f in reverse)),
        "tokens": {"unpadded": _spread(plain), "padded": _spread(padded)},
    }


_GROUPS = ("forward medium", "forward hard", "reverse medium", "reverse hard")


def _kinds(facts: list[dict[str, Any]], which: str) -> list[float]:
    counts = sum((Counter(f[which]) for f in facts), Counter[str]())
    return [round(100 * counts[kind] / counts.total(), 1) for kind in KINDS]


def _percent(counts: Counter[str], digits: int = 0) -> dict[str, float]:
    return {key: round(100 * n / counts.total(), digits) for key, n in sorted(counts.items())}


def _constants(facts: list[dict[str, Any]]) -> dict[str, float]:
    """The share of problems that the one best answer gets right, overall and by operations."""
    groups = {"all": facts} | {str(n): [f for f in facts if f["cell"]["operations"] == n] for n in OPERATIONS}
    return {
        name: round(100 * Counter(f["answer"] for f in group).most_common(1)[0][1] / len(group))
        for name, group in groups.items()
    }


def _spread(facts: list[dict[str, Any]]) -> list[int]:
    """Minimum, tenth percentile, median, mean, ninetieth percentile, maximum of the prompt's tokens."""
    tokens = [f["tokens"] for f in facts]
    tenths = statistics.quantiles(tokens, n=10)
    middle = (min(tokens), tenths[0], statistics.median(tokens), statistics.fmean(tokens), tenths[-1], max(tokens))
    return [round(value) for value in middle]


def speed(seconds: float = 5.0) -> dict[str, float]:
    """Problems per second of one process: over all worlds, levels and modes, and 1 to 8 operations in turn."""
    measure = lru_cache(maxsize=None)(load_smollm2().count)
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
    details = {key: card[key] for key in ("problems", "solved", "operations_right", "problems_per_second", "hardware")}
    return outcome(card["name"], round(ratio, 2), 1.0, ratio >= 1.0, details)


def markdown(card: dict[str, Any]) -> str:
    """Our figures beside the benchmark's, as the tables of docs/GSM_INFINITE.md."""
    ours, tables = card["distributions"], []
    rows = [("ours", name, ours["needed"][name]) for name in _GROUPS]
    rows += [("benchmark", name, BENCHMARK["needed"][name]) for name in _GROUPS]
    rows.sort(key=lambda row: _GROUPS.index(row[1]))
    body = [[f"needed, {name}, {who}", *(f"{share:.1f}" for share in shares)] for who, name, shares in rows]
    body.append(["unneeded, all, ours", *(f"{share:.1f}" for share in ours["unneeded"])])
    body.append(["unneeded, all, benchmark", *BENCHMARK["unneeded"]])
    tables.append(markdown_table(["facts, %", *KINDS], body))
    body = [
        [name, _pairs(ours["asked"][name]), _pairs(BENCHMARK["asked"][name])]
        + [f"{source['needed share'][name]:.0f}" for source in (ours, BENCHMARK)]
        for name in _GROUPS
    ]
    heads = ["", "asked, %: ours", "benchmark", "needed facts, %: ours", "benchmark"]
    tables.append(markdown_table(heads, body))
    body = [
        ["needed quantities, ours", *(f"{ours['quantities'][str(n)]:.1f}" for n in OPERATIONS)],
        ["benchmark", *(BENCHMARK["quantities"][str(n)] for n in OPERATIONS)],
        ["best constant answer, forward, ours, %", *(f"{ours['constant']['forward'][str(n)]:.0f}" for n in OPERATIONS)],
        ["benchmark", *(str(BENCHMARK["constant"]["forward"].get(str(n), "")) for n in OPERATIONS)],
        ["best constant answer, reverse, ours, %", *(f"{ours['constant']['reverse'][str(n)]:.0f}" for n in OPERATIONS)],
    ]
    tables.append(markdown_table(["operations", *map(str, OPERATIONS)], body))
    body = [
        [f"{name}, {who}", *(f"{n:,}" for n in source["tokens"][name])]
        for name in ("unpadded", "padded")
        for who, source in (("ours", ours), ("benchmark", BENCHMARK))
    ]
    heads = ["prompt tokens", "min", "p10", "median", "mean", "p90", "max"]
    tables.append(markdown_table(heads, body))
    body = [
        ["best constant answer, forward, %", *(f"{s['constant']['forward']['all']:.0f}" for s in (ours, BENCHMARK))],
        ["best constant answer, reverse, %", *(f"{s['constant']['reverse']['all']:.0f}" for s in (ours, BENCHMARK))],
        ["forward answers above 20, %", *(f"{s['above 20']:.1f}" for s in (ours, BENCHMARK))],
        ["reverse answers 1, 2, 3, 4, %", *(_shares(s["reverse answers"]) for s in (ours, BENCHMARK))],
        ["reverse problems with a second given number, %", str(ours["decoys"]), ""],
    ]
    tables.append(markdown_table(["", "ours", "benchmark"], body))
    return "\n\n".join(tables)


def _pairs(shares: dict[str, float]) -> str:
    return ", ".join(f"{kind} {share:.0f}" for kind, share in sorted(shares.items(), key=lambda item: -item[1]))


def _shares(shares: dict[str, float]) -> str:
    return " / ".join(f"{share:.1f}" for share in shares.values())


if __name__ == "__main__":
    publish.run(main)
