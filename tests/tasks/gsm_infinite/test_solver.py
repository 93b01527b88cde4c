"""The solver against worked examples by hand, and against real problems.

The real ones have no licence and are not part of the repository: their file lies beside it, or where
REVERIE_GSM_REFERENCE says.
"""

from __future__ import annotations

import itertools
import random
import re

import pytest
from problem_sentences import (
    HOW_MANY_A,
    KNOWN,
    PLAIN,
    PUPS_A,
    PUPS_B,
    WEIGHTED,
    A,
    B,
    C,
    D,
    equals,
    needed,
    q,
    text,
    unknown,
    what_is,
)
from reference_problems import reference_problems

from reverie.tasks.gsm_infinite.parser import parse
from reverie.tasks.gsm_infinite.solver import UnsolvableError, count_operations, solve, work_out


@pytest.mark.parametrize(
    ("right", "kind", "answer", "operations"),
    [
        ("4", "INT", 4, 1),
        (q(B), "Y", 5, 2),
        (f"2 plus {q(B)}", "c+Y", 7, 3),
        (f"2 times {q(B)}", "c*Y", 10, 3),
        (f"the sum of {q(B)} and {q(C)}", "sum2", 8, 4),
        (f"the sum of {q(B)} and {q(B)}", "sum2", 10, 3),
        (f"the difference between {q(C)} and {q(B)}", "diff2", -2, 4),
        (f"2 plus the sum of {q(B)} and {q(C)}", "c sum2", 10, 5),
        (f"3 times the sum of {q(B)} and {q(C)}", "c sum2", 24, 5),
        (f"4 plus the difference between {q(B)} and {q(C)}", "c diff2", 6, 5),
        (f"3 times the difference between {q(C)} and {q(B)}", "c diff2", -6, 5),
        (f"the sum of {q(B)}, {q(C)}, and {q(D)}", "sum3+", 10, 6),
        (f"2 times the sum of {q(B)}, {q(C)}, and {q(D)}", "sum3+", 20, 7),
        (f"the sum of {q(B)}, {q(C)}, {q(D)}, and {q(B)}", "sum3+", 15, 7),
    ],
)
def test_each_right_side(right: str, kind: str, answer: int, operations: int) -> None:
    problem = text(equals(A, right), *KNOWN)
    assert solve(problem, HOW_MANY_A) == answer
    assert count_operations(problem, HOW_MANY_A) == operations
    assert parse(problem, HOW_MANY_A).facts[0].kind == kind


@pytest.mark.parametrize("noun", ["adult animals", "schools", "movies", "grown animals", "colleges", "films"])
def test_plain_total_adds_counts_mentioned_anywhere_but_no_averages(noun: str) -> None:
    total = f"total number of {noun} in Fen Hollow"
    elsewhere = equals("reed hen in Quartz Pier", q("brass ant in Fen Hollow"))  # an operand, never needed
    problem = text(equals(A, 2), equals(PUPS_A, 50), *KNOWN, elsewhere, equals("brass ant in Fen Hollow", 4))
    assert solve(problem, what_is(total)) == 11
    assert needed(problem, what_is(total)) == {total, A, B, "brass ant in Fen Hollow"}
    assert count_operations(problem, what_is(total)) == 6


@pytest.mark.parametrize(
    "noun",
    [
        "newborn animal children",
        "teachers from all schools",
        "movie nominations",
        "young animals",
        "tutors from all colleges",
        "film prizes",
    ],
)
def test_weighted_total_adds_counts_times_averages(noun: str) -> None:
    total = f"total number of {noun} in Fen Hollow"
    problem = text(equals(PUPS_B, q(A)), *KNOWN, equals(A, 2), equals(PUPS_A, 7))
    assert solve(problem, what_is(total)) == 2 * 7 + 5 * 2
    assert count_operations(problem, what_is(total)) == 4 + 4


def test_average_asked_and_totals_as_operands() -> None:
    problem = text(equals(PUPS_B, f"2 plus {q(PLAIN)}"), *KNOWN, equals(A, f"the difference between {q(C)} and {q(B)}"))
    assert solve(problem, what_is(PUPS_B)) == 2 + (5 - 2)
    assert count_operations(problem, what_is(PUPS_B)) == 2 + 2 + 1 + 2 + 1


def test_reverse_with_a_count_as_equation() -> None:
    problem = text(equals(C, 15), unknown(A), equals(C, f"3 times {q(B)}"), equals(B, f"2 plus {q(A)}"))
    assert solve(problem, HOW_MANY_A) == 3
    assert needed(problem, HOW_MANY_A) == {A, B, C}
    assert count_operations(problem, HOW_MANY_A) == 1 + 2 + 2


def test_reverse_with_a_plain_total_as_equation() -> None:
    problem = text(unknown(A), equals(PLAIN, 9), equals(B, f"2 times {q(A)}"))
    assert solve(problem, HOW_MANY_A) == 3
    assert needed(problem, HOW_MANY_A) == {A, B, PLAIN}
    assert count_operations(problem, HOW_MANY_A) == 1 + 2 + 2


def test_reverse_with_a_weighted_total_as_equation() -> None:
    problem = text(
        equals(WEIGHTED, 12), unknown(A), equals(PUPS_A, f"the difference between {q(C)} and {q(D)}"), *KNOWN
    )
    problem += text(equals(PUPS_B, 2))
    assert solve(problem, HOW_MANY_A) == 2
    assert count_operations(problem, HOW_MANY_A) == 1 + 2 + 1 + 1 + 1 + 1 + 4


def test_reverse_with_an_average_asked_and_an_average_as_equation() -> None:
    problem = text(equals(PUPS_B, 1), unknown(PUPS_A), equals(PUPS_B, f"the difference between {q(C)} and {q(PUPS_A)}"))
    assert solve(problem + text(equals(C, 3)), what_is(PUPS_A)) == 2


def test_powers_of_x_may_cancel() -> None:
    square = (unknown(A), equals(PUPS_A, q(A)), equals(C, f"2 plus {q(WEIGHTED)}"))
    difference = f"the difference between {q(C)} and {q(WEIGHTED)}"
    problem = text(*square, equals(D, difference), equals("hen in Rye", f"the sum of {q(D)} and {q(A)}"))
    assert solve(problem + text(equals("hen in Rye", 6)), HOW_MANY_A) == 4


def test_decoys_that_do_not_depend_on_x() -> None:
    decoy = equals("total number of grown animals in Quartz Pier", 5)
    for sentences in ([decoy, equals(PLAIN, 8)], [equals(PLAIN, 8), decoy]):
        problem = text(*sentences, *KNOWN, unknown(A))
        assert solve(problem, HOW_MANY_A) == 3
        assert count_operations(problem, HOW_MANY_A) == 1 + 1 + 2
    with pytest.raises(UnsolvableError, match="grown animals in Quartz Pier is said to be 5, which contradicts"):
        solve(text(decoy, equals(PLAIN, 8), unknown(A), *KNOWN[:2], equals(D, 4)), HOW_MANY_A)


def test_several_equations_must_agree() -> None:
    facts = (unknown(A), equals(B, f"1 plus {q(A)}"), equals(B, 3), equals(PLAIN, 5))
    assert solve(text(*facts), HOW_MANY_A) == 2
    assert count_operations(text(*facts), HOW_MANY_A) == 1 + 2  # the first in the text
    with pytest.raises(UnsolvableError, match="total number of grown animals in Fen Hollow is said to be 6"):
        solve(text(*facts[:3], equals(PLAIN, 6)), HOW_MANY_A)


def test_an_equation_that_cannot_be_used_gives_way_to_another() -> None:
    lost, square = equals("total number of films in Rye", 7), equals(WEIGHTED, 9)
    problem = text(lost, equals(C, q("hen in Rye")), square, unknown(A), equals(PUPS_A, q(A)), equals(PLAIN, 3))
    assert solve(problem, HOW_MANY_A) == 3


def test_repeated_sentences_are_harmless() -> None:
    facts = (unknown(A), equals(B, f"1 plus {q(A)}"), equals(B, 3))
    assert solve(text(*facts, *facts), HOW_MANY_A) == 2
    assert count_operations(text(*facts, *facts), HOW_MANY_A) == 3


def test_what_is_not_needed_may_make_no_sense() -> None:
    circle = (equals(B, q(C)), equals(C, f"the sum of {q(B)} and {q(C)}"))
    twice = (equals(D, f"2 plus {q(A)}"), equals(D, f"3 plus {q(A)}"))
    undefined = equals("hen in Rye", q("owl in Rye"))
    assert solve(text(*circle, *twice, undefined, equals(A, 2)), HOW_MANY_A) == 2


def test_an_unknown_that_is_defined_is_none() -> None:
    assert solve(text(unknown(A), equals(A, 2)), HOW_MANY_A) == 2
    with pytest.raises(UnsolvableError, match="tin owl in Fen Hollow would be -2, but the problem says"):
        solve(text(unknown(A), equals(A, f"the difference between {q(C)} and {q(B)}"), *KNOWN), HOW_MANY_A)


UNSOLVABLE = {
    "undefined": ([equals(A, q(B))], HOW_MANY_A, "number of moss fox in Fen Hollow is needed, but .* not define"),
    "asked of nothing": ([equals(B, 2)], HOW_MANY_A, "number of tin owl in Fen Hollow is needed, but .* not define"),
    "total of nothing": ([equals(C, 2)], what_is(PLAIN), "nothing else is said about Fen Hollow"),
    "undefined in a total": ([equals(A, 2), equals(C, q(B))], what_is(PLAIN), "moss fox in Fen Hollow is needed"),
    "only its average": ([equals(A, 2), equals(PUPS_B, 2)], what_is(PLAIN), "moss fox in Fen Hollow is needed"),
    "no average": ([equals(A, 2)], what_is(WEIGHTED), "average for the number of tin owl .* mentions none"),
    "two averages": (
        [equals(A, 2), equals(PUPS_A, 2), equals(PUPS_A.replace("pups", "eggs"), 2)],
        what_is(WEIGHTED),
        "average for the number of tin owl .* eggs per",
    ),
    "unknown": ([equals(A, q(B)), unknown(B)], HOW_MANY_A, "moss fox in Fen Hollow is needed, but unknown"),
    "circle": (
        [equals(A, q(B)), equals(B, q(C)), equals(C, f"2 plus {q(A)}")],
        HOW_MANY_A,
        "Hollow .*depends on itself",
    ),
    "circle of one": ([equals(A, f"2 times {q(A)}")], HOW_MANY_A, "tin owl in Fen Hollow .*depends on itself"),
    "circle in a total": ([equals(A, q(PLAIN))], HOW_MANY_A, "depends on itself"),
    "two formulas": ([equals(A, q(B)), equals(A, q(C)), *KNOWN], HOW_MANY_A, "tin owl in Fen Hollow is given twice"),
    "two numbers": ([equals(A, 2), equals(A, 3)], HOW_MANY_A, "tin owl in Fen Hollow is given twice: as 2 and as 3"),
    "two numbers unneeded": ([equals(A, 2), equals(B, 2), equals(B, 3)], HOW_MANY_A, "moss fox in .* given twice"),
    "number and formula": (
        [equals(A, 5), equals(A, f"1 plus {q(B)}"), equals(B, 3)],
        HOW_MANY_A,
        "is said to be 5, which contr",
    ),
    "untrue total": ([equals(A, 2), equals(PLAIN, 3)], HOW_MANY_A, "is said to be 3, which contradicts"),
    "no equation": (
        [unknown(A), equals(B, q(A))],
        HOW_MANY_A,
        "no number is stated .* depends on the number of tin owl",
    ),
    "equation without x": (
        [unknown(A), equals(B, 5), equals(B, q(C)), equals(C, 5)],
        HOW_MANY_A,
        "no number is stated",
    ),
    "x cancels": (
        [unknown(A), equals(B, f"the difference between {q(A)} and {q(A)}"), equals(B, 0)],
        HOW_MANY_A,
        "no number is stated",
    ),
    "gap in the equation": (
        [unknown(A), equals(PLAIN, 5), equals(C, q(B))],
        HOW_MANY_A,
        "moss fox in Fen Hollow is needed",
    ),
    "not linear": (
        [unknown(A), equals(PUPS_A, q(A)), equals(WEIGHTED, 9)],
        HOW_MANY_A,
        "young .* is not linear in .* owl",
    ),
    "no integer": (
        [unknown(A), equals(B, f"2 times {q(A)}"), equals(B, 5)],
        HOW_MANY_A,
        "owl .* no integer .* equals 5",
    ),
    "not positive": ([unknown(A), equals(B, f"2 plus {q(A)}"), equals(B, 2)], HOW_MANY_A, "owl .* would be 0"),
    "two unknowns": ([unknown(A), unknown(B), equals(PLAIN, 5)], HOW_MANY_A, "moss fox in Fen Hollow .* but unknown"),
}


@pytest.mark.parametrize(("facts", "question", "message"), UNSOLVABLE.values(), ids=UNSOLVABLE)
def test_what_the_text_does_not_determine(facts: list[str], question: str, message: str) -> None:
    for function in (solve, count_operations):
        with pytest.raises(UnsolvableError, match=message):
            function(text(*facts), question)


def test_long_chains() -> None:
    names = [f"owl number {i} in Rye" for i in range(3000)]
    steps = [equals(name, f"1 plus {q(before)}") for before, name in itertools.pairwise(names)]
    random.Random(0).shuffle(steps)
    question = "How many owl number 2999 does Rye have?"
    assert solve(text(*steps, equals(names[0], 1)), question) == 3000
    assert count_operations(text(*steps, equals(names[0], 1)), question) == 2 * 2999 + 1
    reverse = text(*steps, unknown(names[0]), equals(names[-1], 3002))
    assert solve(reverse, "How many owl number 0 does Rye have?") == 3
    with pytest.raises(UnsolvableError, match="depends on itself"):
        solve(text(*steps, equals(names[0], q(names[-1]))), question)
    with pytest.raises(UnsolvableError, match="owl number 0 in Rye is needed"):
        solve(text(*steps), question)


def test_many_equations_after_one_gap() -> None:
    names = [f"owl number {i} in Rye" for i in range(1500)]
    steps = [equals(name, f"1 plus {q(before)}") for before, name in itertools.pairwise(names)]
    numbers = [equals(name, 7) for name in names[1:]]
    with pytest.raises(UnsolvableError, match="owl number 0 in Rye is needed"):
        solve(text(*numbers, *steps, unknown(A)), HOW_MANY_A)


@pytest.mark.parametrize(("start", "message"), [(equals, "too large"), (unknown, "too large or too far from linear")])
def test_values_that_explode(start: object, message: str) -> None:
    facts = [unknown("owl in place 0") if start is unknown else equals("owl in place 0", 3)]
    for i in range(100):
        facts.append(equals(f"average number of pups per owl in place {i}", q(f"owl in place {i}")))
        facts.append(equals(f"owl in place {i + 1}", f"the total number of young animals in place {i}"))
    facts.append(equals("total number of films in place 100", 3))
    question = f"How many owl does place {0 if start is unknown else 100} have?"
    with pytest.raises(UnsolvableError, match=message):
        solve(text(*facts), question)


def test_every_reference_problem() -> None:
    for case in reference_problems():
        solution = work_out(parse(case["problem"], case["question"]))
        assert (solution.answer, solution.operations) == (case["answer"], case["op"]), case["seed"]
        assert solution.needed == set(re.findall("Define (.+?) as [A-Za-z];", case["solution"])), case["seed"]
