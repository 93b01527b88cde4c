"""Random problems whose values are known: the solver finds answers, needs and operations, or says what is missing."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problem_sentences import HOW_MANY_A, KNOWN, PLACES, A, B, equals, q, text, unknown, what_is

from reverie.tasks.gsm_infinite.parser import NotAProblemError, parse
from reverie.tasks.gsm_infinite.solver import UnsolvableError, solve, work_out


@dataclass(frozen=True)
class Formula:
    operands: list[str]
    constant: int | None = None
    is_factor: bool = False
    combination: str = "sum of"  # or "difference between", or "pairs" for weighted totals

    def value(self, values: dict[str, int]) -> int:
        terms = [values[operand] for operand in self.operands]
        if self.combination == "pairs":
            return sum(count * average for count, average in zip(terms[::2], terms[1::2], strict=True))
        value = terms[0] - terms[1] if self.combination == "difference between" else sum(terms)
        return value * (self.constant or 1) if self.is_factor else value + (self.constant or 0)

    def in_words(self) -> str:
        words = [q(operand) for operand in self.operands]
        if len(words) > 1:
            listed = f"{', '.join(words[:-1])}{',' if len(words) > 2 else ''} and {words[-1]}"
            words = [f"the {self.combination} {listed}"]
        if self.constant is not None and words:
            words = ["times" if self.is_factor else "plus", *words]
        return " ".join([*([] if self.constant is None else [str(self.constant)]), *words])


@dataclass(frozen=True)
class Known:
    """A random problem whose formulas are known, each after those that it needs."""

    formulas: dict[str, Formula]

    def values(self, changed: dict[str, int]) -> dict[str, int]:
        values: dict[str, int] = {}
        for name, formula in self.formulas.items():
            values[name] = changed[name] if name in changed else formula.value(values)
        return values

    def sentences(self, rng: random.Random, without: str = "") -> list[str]:
        facts = [name for name in self.formulas if not name.startswith("total") and name != without]
        return [equals(name, self.formulas[name].in_words()) for name in rng.sample(facts, len(facts))]

    def needed(self, name: str) -> set[str]:
        return {name}.union(*map(self.needed, self.formulas[name].operands))

    def operations(self, name: str) -> int:
        formulas = [self.formulas[term] for term in self.needed(name)]
        return sum(len(formula.operands) + (formula.constant is not None) for formula in formulas)


def random_problem(rng: random.Random) -> Known:
    """Place after place: all counts and averages of one, from anything before, then its totals."""
    known = Known({})
    for place in ["Fen Hollow", "Quartz Pier", "Salt and Rye"][: rng.randint(1, 3)]:
        counts = [f"{thing} in {place}" for thing in ["tin owl", "moss fox", "reed hen"][: rng.randint(1, 3)]]
        averages = [f"average number of pups per {count}" for count in counts]
        for name in rng.sample(counts + averages, 2 * len(counts)):
            known.formulas[name] = random_formula(rng, list(known.formulas))
        known.formulas[f"total number of films in {place}"] = Formula(counts)
        pairs = [name for pair in zip(counts, averages, strict=True) for name in pair]
        known.formulas[f"total number of film prizes in {place}"] = Formula(pairs, combination="pairs")
    return known


def random_formula(rng: random.Random, earlier: list[str]) -> Formula:
    operands = rng.choices(earlier, k=rng.choice([0, 1, 1, 2, 3])) if earlier else []
    if not operands:
        return Formula([], rng.randint(1, 4))
    combination = rng.choice(["sum of", "difference between"]) if len(operands) == 2 else "sum of"
    return Formula(operands, rng.choice([None, 2, 3, 4]), rng.random() < 0.5, combination)


def question_for(name: str) -> str:
    if name.startswith(("average", "total")):
        return what_is(name)
    return "How many {} does {} have?".format(*name.split(" in "))


seeds = given(seed=st.integers(0, 2**32))


@settings(max_examples=60, deadline=None)
@seeds
def test_forward_answers_needs_and_counts(seed: int) -> None:
    rng = random.Random(seed)
    known = random_problem(rng)
    name = rng.choice(list(known.formulas))
    solution = work_out(parse(text(*known.sentences(rng)), question_for(name)))
    assert solution.answer == known.values({})[name]
    assert solution.needed == known.needed(name)
    assert solution.operations == known.operations(name)


@settings(max_examples=120, deadline=None)
@seeds
def test_reverse_finds_what_was_hidden(seed: int) -> None:
    """Any quantity that depends on a hidden number may be the equation. If it is not linear, that is said."""
    rng = random.Random(seed)
    known = random_problem(rng)
    hidden = next(iter(known.formulas))
    name = rng.choice([name for name in known.formulas if name != hidden and hidden in known.needed(name)])
    right = known.values({})
    sentences = [unknown(hidden), equals(name, right[name]), *known.sentences(rng, without=hidden)]
    problem = parse(text(*rng.sample(sentences, len(sentences))), question_for(hidden))

    curve = [known.values({hidden: x})[name] for x in range(12)]  # of degree 8 at most
    slopes = {after - before for before, after in itertools.pairwise(curve)}
    if len(slopes) > 1:
        with pytest.raises(UnsolvableError, match="not linear"):
            work_out(problem)
    elif slopes == {0}:
        with pytest.raises(UnsolvableError, match="no number is stated"):
            work_out(problem)
    else:
        solution = work_out(problem)
        assert solution.answer == right[hidden]
        assert solution.needed == known.needed(name)
        assert solution.operations == known.operations(name)


@settings(max_examples=40, deadline=None)
@seeds
def test_order_other_facts_and_names_change_nothing(seed: int) -> None:
    rng = random.Random(seed)
    known = random_problem(rng)
    name = rng.choice(list(known.formulas))
    before = work_out(parse(text(*known.sentences(rng)), question_for(name)))
    others = [equals(f"brass ant in {i} Elsewhere", q(rng.choice(list(known.formulas)))) for i in range(5)]
    problem, question = text(*others, *known.sentences(rng), *known.sentences(rng)[:1], *others[:2]), question_for(name)
    assert work_out(parse(problem, question)) == before

    olds = ["Fen Hollow", "Quartz Pier", "Salt and Rye", "Elsewhere"]
    names = dict(zip(olds, rng.sample(PLACES, 4), strict=True))
    problem, question = (re.sub("|".join(olds), lambda old: names[old[0]], string) for string in (problem, question))
    renamed = work_out(parse(problem, question))
    assert (renamed.answer, renamed.operations) == (before.answer, before.operations)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*text(*KNOWN, unknown(A)).split(" "), q(B), "equals", ".", "\n"]), max_size=40))
def test_no_text_does_worse_than_an_error(words: list[str]) -> None:
    for question in (HOW_MANY_A, " ".join(words)):
        try:
            solve(" ".join(words), question)
        except (NotAProblemError, UnsolvableError):
            continue
