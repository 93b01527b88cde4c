"""Worked solutions: every step in them is true, they go through all that is needed, and they end in the answer."""

from __future__ import annotations

import re
from itertools import pairwise
from random import Random
from string import ascii_letters

import pytest
from problem_sets import plain_problems

from reverie.tasks.gsm_infinite.core import Core, Fact, Mode, Quantity
from reverie.tasks.gsm_infinite.generator import Problem
from reverie.tasks.gsm_infinite.solution import solution
from reverie.tasks.gsm_infinite.text import name
from reverie.tasks.gsm_infinite.worlds import WILDLIFE

REVERSE_START = "One quantity is unknown, so we set up an equation and solve it."
each_problem = pytest.mark.parametrize("mode", ["forward", "reverse"])


def problems(mode: str) -> list[Problem]:
    return [problem for problem in plain_problems() if problem.mode == mode]


def definitions(problem: Problem) -> list[tuple[str, str, str]]:
    """(name, symbol, steps) of each entry, in order."""
    return re.findall(r"Define (.+?) as ([A-Za-z]); (.+?)\. ", problem.solution)


def chains(problem: Problem) -> list[list[str]]:
    """The sides of all equations, in order: "so c = a + b = 2 + 3 = 5" is c, a + b, 2 + 3, 5."""
    lines = re.split(r"; |\. |, so ", problem.solution)
    lines = [re.sub(r"^(so|We know that) ", "", line) for line in lines]
    return [line.split(" = ") for line in lines if " = " in line]


def followed(problem: Problem) -> dict[str, float]:
    """The values of all symbols; fails at the first step that is not true."""
    values: dict[str, float] = {"x": problem.answer} if problem.mode == "reverse" else {}
    for symbol, *sides in chains(problem):
        found = {eval(side, {}, dict(values)) for side in sides}
        if symbol in ascii_letters:
            found.add(values.setdefault(symbol, min(found)))
        else:  # the equation
            found.add(eval(symbol, {}, dict(values)))
        assert len(found) == 1, (symbol, sides)
    return values


@each_problem
def test_every_step_is_true(mode: str) -> None:
    for problem in problems(mode):
        values, core = followed(problem), problem.core
        symbols = [symbol for _, symbol, _ in definitions(problem)]
        assert [values[symbol] for symbol in symbols] == [core.values[q] for q in core.needed]
        assert len(set(symbols)) == len(symbols)


@each_problem
def test_every_step_combines_two_things_and_names_a_new_one(mode: str) -> None:
    for problem in problems(mode):
        steps = [step.removeprefix("so ") for _, _, work in definitions(problem) for step in work.split("; ")]
        defined = [step.split(" = ")[0] for step in steps if " = " in step]
        assert len(set(defined)) == len(defined)
        for _, symbols, *_ in (step.split(" = ") for step in steps if " = " in step):
            assert re.fullmatch(r"\w+|\w+ [-+*] \w+|\w+( \* \w+)?( \+ \w+ \* \w+)?", symbols)


@each_problem
def test_entries_are_what_is_needed_in_order_of_dependency(mode: str) -> None:
    for problem in problems(mode):
        core = problem.core
        assert [called for called, _, _ in definitions(problem)] == [
            name(core.quantities[q], core.world) for q in core.needed
        ]
        assert problem.solution.startswith(REVERSE_START if mode == "reverse" else "Define ")


@each_problem
def test_it_ends_in_the_answer(mode: str) -> None:
    for problem in problems(mode):
        assert problem.solution.endswith(f". Answer: {problem.answer}.")
        numbers = re.findall(r"\d+", problem.solution)
        assert [int(n) for n in numbers[-2:]] == [problem.answer] * 2


def test_reverse_steps_are_expressions_in_x() -> None:
    """The given quantity's expression is an equation that the last lines solve."""
    for problem in problems("reverse"):
        core = problem.core
        given = core.values[core.needed[-1]]
        equation = problem.solution.split("We know that ")[1]
        symbol = definitions(problem)[-1][1]
        assert equation.startswith(f"{symbol} = {given}, so ")
        left = [line.split(" = ")[0] for line in re.split(r"; |, ", equation.split(". ")[0])[1:]]
        left = [side.removeprefix("so ") for side in left]
        assert left[-1] == "x"
        assert all(a != b for a, b in pairwise(left))


def by_hand(mode: Mode, fact: Fact, number: int = 4) -> str:
    """Three otters, `number` lynxes, and hares by the fact about both; symbols in order a, b, c, …"""
    quantities = [Quantity("count", "Gull Island", f"grown {animal}") for animal in ("otter", "lynx", "hare")]
    facts = {0: Fact(3, False, False, ()), 1: Fact(number, False, False, ()), 2: fact}
    core = Core(WILDLIFE, "medium", mode, quantities, [(), (), ()], [0, 1, 2], facts, {0: 3, 1: number})
    core.values[2] = core.value(2)
    core.unknown = 1 if mode == "reverse" else None
    text = solution(core, Random(0))
    for new, old in zip("ABCDEF", dict.fromkeys(re.findall(r"\b([A-Za-wyz])\b(?= =|;)", text)), strict=False):
        text = re.sub(rf"\b{old}\b", f"<{new}>", text)
    return re.sub(r"<(.)>", lambda found: found[1].lower(), text)


OTTER, LYNX, HARE = (f"grown {animal} in Gull Island" for animal in ("otter", "lynx", "hare"))


@pytest.mark.parametrize(
    ("fact", "steps", "answer"),
    [
        (Fact(None, False, False, (1,)), "so c = b = 4", 4),
        (Fact(2, False, False, (1,)), "so c = 2 + b = 2 + 4 = 6", 6),
        (Fact(2, True, False, (1,)), "so c = 2 * b = 2 * 4 = 8", 8),
        (Fact(None, False, False, (1, 0)), "so c = b + a = 4 + 3 = 7", 7),
        (Fact(None, False, True, (1, 0)), "so c = b - a = 4 - 3 = 1", 1),
        (Fact(2, True, False, (1, 0)), "d = b + a = 4 + 3 = 7; so c = d * 2 = 7 * 2 = 14", 14),
        (Fact(2, False, True, (1, 0)), "d = b - a = 4 - 3 = 1; so c = d + 2 = 1 + 2 = 3", 3),
    ],
)
def test_forward_by_hand(fact: Fact, steps: str, answer: int) -> None:
    assert by_hand("forward", fact) == (
        f"Define {OTTER} as a; so a = 3. Define {LYNX} as b; so b = 4. Define {HARE} as c; {steps}. Answer: {answer}."
    )


@pytest.mark.parametrize(
    ("fact", "steps", "equation"),
    [
        (Fact(None, False, False, (1,)), "so b = x", "b = 4, so x = 4"),
        (Fact(2, False, False, (1,)), "so b = 2 + x = 2 + x = x + 2", "b = 6, so x + 2 = 6; so x = 4"),
        (Fact(2, True, False, (1,)), "so b = 2 * x = 2 * x = 2*x", "b = 8, so 2*x = 8; so x = 8 / 2 = 4"),
        (
            Fact(3, True, True, (0, 1)),
            "c = a - x = 3 - x = -x + 3; so b = c * 3 = (-x + 3) * 3 = -3*x + 9",
            "b = -3, so -3*x + 9 = -3; so -3*x = -12; so x = -12 / -3 = 4",
        ),
    ],
)
def test_reverse_by_hand(fact: Fact, steps: str, equation: str) -> None:
    assert by_hand("reverse", fact) == (
        f"{REVERSE_START} Define {OTTER} as a; so a = 3. Define {LYNX} as x; we do not know its value yet and will "
        f"find it later. Define {HARE} as b; {steps}. We know that {equation}. Answer: 4."
    )
