"""Sentences are read as they are meant, whatever names are in them, and refused where they follow no grammar."""

from __future__ import annotations

import pytest
from problem_sentences import HOW_MANY_A, KNOWN, PLACES, PLAIN, PUPS_A, A, B, C, D, equals, q, text, unknown, what_is

from reverie.tasks.gsm_infinite.parser import Fact, NotAProblemError, parse
from reverie.tasks.gsm_infinite.solver import solve


def test_parse_keeps_order_and_what_a_fact_says() -> None:
    problem = parse(text(unknown(A), equals(B, f"2 times {q(A)}"), equals(B, 6), equals(PLAIN, 9)), HOW_MANY_A)
    assert problem.facts == (
        Fact(A, "unknown"),
        Fact(B, "copy", (A,), 2, is_factor=True),
        Fact(B, "number", constant=6),
        Fact(PLAIN, "number", constant=9),
    )
    assert [fact.kind for fact in problem.facts] == ["UNKNOWN", "c*Y", "INT", "INT"]
    assert problem.asked == A
    assert problem.given() == {B: 6, PLAIN: 9}


FORMS_OF_TEXT = {
    "as made": text(*KNOWN, equals(A, 1)),
    "no blank at the end": text(*KNOWN, equals(A, 1)).rstrip(),
    "no period at the end": text(*KNOWN, equals(A, 1)).rstrip(". "),
    "lines with periods": ".\n".join([*KNOWN, equals(A, 1)]),
    "lines without": "\n".join([*KNOWN, equals(A, 1)]),
    "Windows": "\r\n\r\n".join([*KNOWN, equals(A, 1)]),
    "wide": text(*KNOWN, equals(A, 1)).replace(" ", "  "),
}


@pytest.mark.parametrize("problem", FORMS_OF_TEXT.values(), ids=FORMS_OF_TEXT)
def test_ends_of_sentences(problem: str) -> None:
    assert solve(problem, what_is(PLAIN)) == 6


THINGS = ["lost in thought hen", "owl, fox and hen", "Dr. Who's cat", "play about what she does in winter", "naïve ox"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("thing", THINGS)
def test_names_are_free_text(thing: str, place: str) -> None:
    name, other = f"{thing} in {place}", f"tin owl in {place}"
    average, total = f"average number of pups per {name}", f"total number of film prizes in {place}"
    problem = text(
        equals(D, f"the sum of {q(name)}, {q(other)}, and {q(average)}"),
        equals(name, f"the difference between {q(other)} and {q(C)}"),
        equals(other, 5),
        equals(average, f"the sum of {q(other)} and {q(name)}"),
        equals(f"average number of pups per {other}", q(average)),
        equals(C, 3),
    )
    assert solve(problem, f"How many {thing} does {place} have?") == 2
    assert solve(problem, what_is(average)) == 7
    assert solve(problem, what_is(total)) == 2 * 7 + 5 * 7
    assert solve(problem, what_is(f"total number of films in {place}")) == 2 + 5
    assert solve(problem, "How many moss fox does Quartz Pier have?") == 14


def test_a_place_that_ends_like_another_is_its_own() -> None:
    problem = text(
        equals("owl in Rye", 2), equals("owl in Lost in Rye", 5), equals(A, "the total number of films in Rye")
    )
    assert solve(problem, HOW_MANY_A) == 7  # "owl in Lost" is a possible type, if nothing speaks of "Lost in Rye"
    problem += text(equals(B, "the total number of films in Lost in Rye"))
    assert solve(problem, HOW_MANY_A) == 2
    assert solve(problem, what_is("total number of films in Lost in Rye")) == 5


NOT_PROBLEMS = {
    "no sentence": "hello",
    "later sentence": f"{equals(A, 2)}. Hello world. ",
    "line after it": f"{equals(A, 2)}.\nHello world.",
    "no verb": "The number of tin owl in Fen Hollow.",
    "no number": equals(A, "two"),
    "fraction": equals(A, "2.5"),
    "huge number": equals(A, "9" * 5000),
    "foreign digits": equals(A, "٣"),
    "number only": equals(A, "2 plus"),
    "number twice": equals(A, f"2 plus 3 times {q(B)}"),
    "minus": equals(A, f"2 minus {q(B)}"),
    "no link": equals(A, f"2 {q(B)}"),
    "sum of one": equals(A, f"the sum of {q(B)}"),
    "list without sum": equals(A, f"{q(B)} and {q(C)}"),
    "sum without and": equals(A, f"the sum of {q(B)}, {q(C)}"),
    "sum with odd commas": equals(A, f"the sum of {q(B)} and {q(C)}, and {q(D)}"),
    "difference of three": equals(A, f"the difference between {q(B)}, {q(C)}, and {q(D)}"),
    "two in one": equals(A, f"{q(B)} plus {q(C)}"),
    "no period between": f"{equals(A, q(B))} {equals(B, 2)}",
    "equals twice": f"{equals(A, q(B))} equals 3",
    "no place": "The number of tin owl equals 3.",
    "average of nothing": "The average number of pups in Fen Hollow equals 3.",
    "average dressed as a count": equals(f"number of {PUPS_A}", 3),
    "unknown noun": equals(A, "the total number of teapots in Fen Hollow"),
    "formula for a total": equals(PLAIN, q(A)),
    "unknown total": f"The {PLAIN} is greater than 0.",
    "unknown count, average's words": f"The number of {A} is greater than 0.",
    "unknown average, count's words": f"The {PUPS_A} exists, and its number is greater than 0.",
    "long name": equals("owl in " * 100_000 + "Rye", 3),
    "one long sentence": "The number of " + "the number of " * 100_000,
    "long junk": "x. " * 100_000,
    "nulls": "\0" * 1000,
}


@pytest.mark.parametrize("problem", NOT_PROBLEMS.values(), ids=NOT_PROBLEMS)
def test_sentences_that_cannot_be_read(problem: str) -> None:
    with pytest.raises(NotAProblemError, match="cannot read the sentence") as error:
        solve(problem, HOW_MANY_A)
    message = str(error.value)
    assert len(message) < 700
    assert "\n" not in message
    assert problem[:20].strip() in message or problem[-20:].strip(". ") in message


@pytest.mark.parametrize("problem", ["", " ", "\n \n", "\t"])
def test_empty_problem(problem: str) -> None:
    with pytest.raises(NotAProblemError, match="the problem is empty"):
        solve(problem, HOW_MANY_A)


@pytest.mark.parametrize(
    "question",
    [
        "",
        "...",
        "What is love?",
        "How many tin owl?",
        "How many tin owl does Fen Hollow have",
        "How many does Fen Hollow have?",
        "How many tin owl does have?",
        "What is the total number of teapots in Fen Hollow?",
        "What is the total number of films?",
        "What is the average number of pups in Fen Hollow?",
        f"How many {'does ' * 100_000} have?",
    ],
)
def test_questions_that_cannot_be_read(question: str) -> None:
    with pytest.raises(NotAProblemError, match="cannot read the question") as error:
        solve(text(equals(A, 2)), question)
    assert len(str(error.value)) < 700
