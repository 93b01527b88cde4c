"""Problems of every kind, drawn once for all tests, and what their text says, read without the solver."""

from __future__ import annotations

from functools import cache
from itertools import product
from random import Random
from typing import Any, get_args

from reverie.tasks.gsm_infinite.core import Core, Level, Mode
from reverie.tasks.gsm_infinite.draw import draw_core
from reverie.tasks.gsm_infinite.generator import Problem, ProblemConfig, draw_problem
from reverie.tasks.gsm_infinite.parser import WEIGHTED_NOUNS, Fact, is_average, is_total, noun_and_place, parse
from reverie.tasks.gsm_infinite.worlds import WORLDS, WorldName

ALL_WORLDS: tuple[WorldName, ...] = get_args(WorldName)
LEVELS: tuple[Level, ...] = get_args(Level)
MODES: tuple[Mode, ...] = get_args(Mode)
KINDS = list(product(ALL_WORLDS, LEVELS, MODES))
PADDED_LENGTH = (9000, 11000)  # characters


def config(world: WorldName, level: Level, mode: Mode, **others: Any) -> ProblemConfig:
    return ProblemConfig(worlds=(world,), levels=(level,), modes=(mode,), max_operations=30, **others)


@cache
def plain_problems() -> list[Problem]:
    """Of every kind, with 1 to 30 operations; a test problem among seven."""
    kinds = product(KINDS, range(1, 31))
    return [draw_problem(config(*kind), "train" if i % 7 else "test", 0, 0, i, n) for i, (kind, n) in enumerate(kinds)]


@cache
def padded_problems() -> list[Problem]:
    return [
        draw_problem(config(*kind, length=PADDED_LENGTH), "train", 0, 1, n, n, reserved=-1)
        for kind, n in product(KINDS, (1, 2, 3, 5, 8, 20))
    ]


@cache
def cores() -> list[Core]:
    return [problem.core for problem in plain_problems()]


def core_of(
    seed: int, operations: int, *, level: Level = "medium", mode: Mode = "forward", max_value: int = 1000
) -> Core:
    """The first one that a seed leads to."""
    rng = Random(seed)
    while True:
        core = draw_core(rng, WORLDS["wildlife"], level, mode, operations, max_value)
        if core is not None:
            return core


def padding_places(problem: Problem) -> set[str]:
    return set(WORLDS[problem.world].padding_places)


def is_padding(fact: Fact, problem: Problem) -> bool:
    return fact.subject.rpartition(" in ")[2] in padding_places(problem)


def sentences(problem: Problem) -> list[str]:
    return [sentence + "." for sentence in problem.problem.removesuffix(".").split(". ")]


def values_in_text(problem: Problem) -> dict[str, int]:
    """Every quantity in the text by name, x being the answer; fails on a circle or a number that is not true."""
    parsed = parse(problem.problem, problem.question)
    formulas = {f.subject: f for f in parsed.facts if f.operands or f.form == "unknown"}
    numbers = {f.subject: f for f in parsed.facts if f.form == "number"}
    facts = {name: fact for name, fact in {**numbers, **formulas}.items() if not is_total(name)}
    values: dict[str, int | None] = {}

    def value(name: str) -> int:
        if name not in values:
            values[name] = None  # being computed
            values[name] = total(*noun_and_place(name)) if is_total(name) else right_side(facts[name])
        found = values[name]
        assert found is not None, f"{name} depends on itself"
        return found

    def total(noun: str, place: str) -> int:
        counts = [name for name in facts if name.endswith(f" in {place}") and not is_average(name)]
        averages = {count: [a for a in facts if a.endswith(f" per {count}")] for count in counts}
        weighted = noun in WEIGHTED_NOUNS
        return sum(value(n) * (value(averages[n][0]) if weighted else 1) for n in counts)

    def right_side(fact: Fact) -> int:
        if fact.form == "unknown":
            return problem.answer
        first, *others = [value(name) for name in fact.operands] or [0]
        body = first - others[0] if fact.form == "difference" else first + sum(others)
        constant = fact.constant or 0
        return constant * body if fact.is_factor else constant + body

    found = {name: value(name) for name in parsed.mentioned()}
    assert all(found[name] == fact.constant for name, fact in numbers.items())
    return found
