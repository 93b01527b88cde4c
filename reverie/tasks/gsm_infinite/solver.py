"""Solver of GSM-Infinite problems: from the text alone, the answer, the quantities it needs, and their operations.

It shares nothing with the generator, so that agreement of the two is evidence.

Values are polynomials in x, the unknown of a reverse problem: arrays of Python's integers c0, c1, … for c0 + c1·x + …,
without trailing zeros (but zero is one 0).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import reduce
from graphlib import CycleError, TopologicalSorter

import numpy as np
from numpy.polynomial.polynomial import polyadd, polymul, polyval

from reverie.tasks.gsm_infinite.parser import (
    WEIGHTED_NOUNS,
    Fact,
    Problem,
    counted_by,
    in_words,
    is_average,
    is_total,
    noun_and_place,
    parse,
)

Polynomial = np.ndarray

# Weighted totals of weighted totals square a value at every step; Python converts at most 4,300 digits to text.
_MOST_BITS = 14_000
_HIGHEST_DEGREE = 8


class UnsolvableError(ValueError):
    """The text does not determine the answer; the message is one sentence that names what is missing."""


@dataclass(frozen=True, slots=True)
class Solution:
    """The answer, the quantities that a worked solution computes, and the number of their operations.

    Needed are the quantities that the asked one depends on; in a reverse problem those that the given one depends on.
    """

    answer: int
    needed: frozenset[str]
    operations: int


def solve(problem: str, question: str) -> int:
    """Answer of a problem. Raises `NotAProblemError` or `UnsolvableError`."""
    return work_out(parse(problem, question)).answer


def count_operations(problem: str, question: str) -> int:
    """Number of operations, the benchmark's "op": operands and numbers of all needed quantities, and 1 for x.

    Raises `NotAProblemError` or `UnsolvableError`.
    """
    return work_out(parse(problem, question)).operations


def work_out(problem: Problem) -> Solution:
    """Solve a parsed problem. Raises `UnsolvableError`.

    Quantities that are not needed may be circular, undefined or defined by two formulas, as in the benchmark's data.
    But a number that is stated for a total, or besides a formula, must be right wherever it can be computed.
    """
    definitions = _Definitions(problem)
    values = _Values(definitions)
    given = problem.given()
    if definitions.is_reverse:
        goal, answer = _solve_equation(given, values, problem.asked)
    else:
        goal, answer = problem.asked, values.of(problem.asked)[0]
    if problem.asked in definitions.unknown and answer <= 0:
        raise UnsolvableError(f"{in_words(problem.asked)} would be {answer}, but the problem says it is greater than 0")
    _check(given, values, answer)
    reached = _reachable(goal, definitions)
    return Solution(answer, frozenset(reached), sum(definitions.operations(name) for name in reached))


def _solve_equation(given: dict[str, int], values: _Values, asked: str) -> tuple[str, int]:
    """Return the first given quantity that is linear in x, and x."""
    obstacles = []
    for name, number in given.items():
        try:
            value = values.of(name)
        except UnsolvableError as error:
            obstacles.append(str(error))
            continue
        if len(value) == 2:
            x, rest = divmod(number - value[0], value[1])
            if rest:
                raise UnsolvableError(f"{in_words(asked)} is no integer if {in_words(name)} equals {number}")
            return name, x
        if len(value) > 2:
            obstacles.append(f"the equation for {in_words(name)} is not linear in {in_words(asked)}")
    nothing = f"no number is stated for a quantity that depends on {in_words(asked)}"
    raise UnsolvableError(obstacles[0] if obstacles else nothing)


def _check(given: dict[str, int], values: _Values, x: int) -> None:
    """Check the given numbers that can be computed. Raises `UnsolvableError` if one is wrong."""
    for name, number in given.items():
        try:
            value = values.of(name)
        except UnsolvableError:
            continue
        if polyval(x, value) != number:
            raise UnsolvableError(f"{in_words(name)} is said to be {number}, which contradicts the rest of the problem")


def _reachable(goal: str, definitions: _Definitions, known: Collection[str] = ()) -> dict[str, tuple[str, ...]]:
    """The goal and all quantities that it depends on, with their terms; without those that are known."""
    reached: dict[str, tuple[str, ...]] = {}
    waiting = [goal]
    while waiting:
        name = waiting.pop()
        if name not in reached and name not in known:
            reached[name] = definitions.terms(name)
            waiting += reached[name]
    return reached


class _Definitions:
    """Definitions of quantities, looked up only when used: the text need not make sense everywhere."""

    def __init__(self, problem: Problem) -> None:
        self._asked = problem.asked
        self._numbers: dict[str, Fact] = {}
        self._formulas: dict[str, set[Fact]] = {}
        self.unknown: dict[str, Fact] = {}
        for fact in problem.facts:
            if fact.form == "unknown":
                self.unknown[fact.subject] = fact
            elif fact.form != "number":
                self._formulas.setdefault(fact.subject, set()).add(fact)
            elif (other := self._numbers.setdefault(fact.subject, fact)) != fact:
                both = f"as {other.constant} and as {fact.constant}"
                raise UnsolvableError(f"{in_words(fact.subject)} is given twice: {both}")
        self._things = _things_by_place(problem.mentioned())

    @property
    def is_reverse(self) -> bool:
        """True if the question asks for an unknown that nothing defines."""
        asked = self._asked
        return asked in self.unknown and asked not in self._numbers and asked not in self._formulas

    def terms(self, name: str) -> tuple[str, ...]:
        """Quantities that this one is computed from; for a weighted total count, average, count, average, …"""
        if not is_total(name):
            return self.fact(name).operands
        noun, place = noun_and_place(name)
        things = self._things[place]
        if not things:
            raise UnsolvableError(f"{in_words(name)} is needed, but nothing else is said about {place}")
        if noun not in WEIGHTED_NOUNS:
            return tuple(things)
        for count, averages in things.items():
            if len(averages) != 1:
                several = " and ".join(map(in_words, averages)) or "none"
                raise UnsolvableError(
                    f"one average for {in_words(count)} is needed, but the problem mentions {several}"
                )
        return tuple(term for count, averages in things.items() for term in (count, *averages))

    def operations(self, name: str) -> int:
        """Number of operations of one quantity."""
        return len(self.terms(name)) if is_total(name) else self.fact(name).operations

    def fact(self, name: str) -> Fact:
        """The fact that defines a count or average; a number besides a formula is an equation, not a definition."""
        formulas = self._formulas.get(name)
        if formulas:
            if len(formulas) > 1:
                raise UnsolvableError(f"{in_words(name)} is given twice: by different formulas")
            return next(iter(formulas))
        if name in self._numbers:
            return self._numbers[name]
        if name not in self.unknown:
            raise UnsolvableError(f"{in_words(name)} is needed, but the problem does not define it")
        if name != self._asked:
            raise UnsolvableError(f"{in_words(name)} is needed, but unknown and not what the question asks for")
        return self.unknown[name]


def _things_by_place(mentioned: Iterable[str]) -> dict[str, dict[str, dict[str, None]]]:
    """Counts with their averages, by place that has a total; counts of which only the average is mentioned too.

    Names of types and places may contain " in ": a count belongs to the longest such place that its name ends with.
    """
    things: dict[str, dict[str, dict[str, None]]] = {}
    for name in mentioned:
        if is_total(name):
            things.setdefault(noun_and_place(name)[1], {})
    for name in mentioned:
        if is_total(name):
            continue
        count = counted_by(name) if is_average(name) else name
        words = count.split(" in ")
        endings = (" in ".join(words[i:]) for i in range(1, len(words)))
        place = next((ending for ending in endings if ending in things), None)
        if place is not None:
            averages = things[place].setdefault(count, {})
            if is_average(name):
                averages[name] = None
    return things


class _Values:
    """Values of quantities, computed on first use. Without recursion, since chains may be as long as the text."""

    def __init__(self, definitions: _Definitions) -> None:
        self._definitions = definitions
        self._known: dict[str, Polynomial] = {}

    def of(self, name: str) -> Polynomial:
        """Value of a quantity. Raises `UnsolvableError`."""
        needed = _reachable(name, self._definitions, self._known)
        try:
            order = [*TopologicalSorter(needed).static_order()]
        except CycleError as error:
            raise UnsolvableError(f"{in_words(error.args[1][0])} is needed, but depends on itself") from None
        for quantity in order:
            if quantity not in self._known:
                self._known[quantity] = self._combine(quantity)
        return self._known[name]

    def _combine(self, name: str) -> Polynomial:
        terms = [self._known[term] for term in self._definitions.terms(name)]
        if not is_total(name):
            value = _evaluate(self._definitions.fact(name), terms)
        elif noun_and_place(name)[0] in WEIGHTED_NOUNS:
            value = _sum(polymul(count, average) for count, average in zip(terms[::2], terms[1::2], strict=True))
        else:
            value = _sum(terms)
        if len(value) > _HIGHEST_DEGREE + 1 or any(c.bit_length() > _MOST_BITS for c in value):
            raise UnsolvableError(f"{in_words(name)} is needed, but too large or too far from linear to compute")
        return value


def _evaluate(fact: Fact, operands: list[Polynomial]) -> Polynomial:
    if fact.form == "unknown":
        return _polynomial(0, 1)
    if fact.form == "difference":
        operands = [operands[0], -operands[1]]
    if fact.constant is None:
        return _sum(operands)
    constant = _polynomial(fact.constant)
    return polymul(constant, _sum(operands)) if fact.is_factor else _sum([*operands, constant])


def _sum(terms: Iterable[Polynomial]) -> Polynomial:
    return reduce(polyadd, terms, _polynomial(0))


def _polynomial(*coefficients: int) -> Polynomial:
    return np.array(coefficients, dtype=object)
