"""Sentences in the benchmark's forms, and the parser reads back what the core holds."""

from __future__ import annotations

import pytest
from problem_sets import cores

from reverie.tasks.gsm_infinite import parser
from reverie.tasks.gsm_infinite.core import Core, Fact, Quantity
from reverie.tasks.gsm_infinite.text import core_sentences, fact_sentence, name, phrase, question_text, unknown_sentence
from reverie.tasks.gsm_infinite.worlds import WILDLIFE

COUNT = Quantity("count", "Gull Island", "grown otter")
AVERAGE = COUNT._replace(kind="average")
TOTAL = Quantity("total", "Gull Island")
WEIGHTED = Quantity("weighted total", "Gull Island")
A, B, C = (f" the number of grown {animal} in Silver Fen" for animal in ("hare", "lynx", "stoat"))


@pytest.mark.parametrize(
    ("fact", "operands", "right"),
    [
        (Fact(4, False, False, ()), [], "4"),
        (Fact(None, False, False, (0,)), [A], f"{A[1:]}"),
        (Fact(2, False, False, (0,)), [A], f"2 plus{A}"),
        (Fact(2, True, False, (0,)), [A], f"2 times{A}"),
        (Fact(None, False, False, (0, 1)), [A, B], f"the sum of{A} and{B}"),
        (Fact(None, False, True, (0, 1)), [A, B], f"the difference between{A} and{B}"),
        (Fact(3, True, True, (0, 1)), [A, B], f"3 times the difference between{A} and{B}"),
        (Fact(None, False, False, (0, 1, 2)), [A, B, C], f"the sum of{A},{B}, and{C}"),
        (Fact(2, False, False, (0, 1, 2)), [A, B, C], f"2 plus the sum of{A},{B}, and{C}"),
    ],
)
def test_fact_sentences(fact: Fact, operands: list[str], right: str) -> None:
    left = "The number of grown otter in Gull Island equals"
    assert "".join(fact_sentence(phrase(COUNT, WILDLIFE), fact, operands)) == f" {left} {right}."


@pytest.mark.parametrize(
    ("quantity", "in_text", "question"),
    [
        (COUNT, "the number of grown otter in Gull Island", "How many grown otter does Gull Island have?"),
        (
            AVERAGE,
            "the average number of young ones per grown otter in Gull Island",
            "What is the average number of young ones per grown otter in Gull Island?",
        ),
        (
            TOTAL,
            "the total number of grown animals in Gull Island",
            "What is the total number of grown animals in Gull Island?",
        ),
        (
            WEIGHTED,
            "the total number of young animals in Gull Island",
            "What is the total number of young animals in Gull Island?",
        ),
    ],
)
def test_names_and_questions(quantity: Quantity, in_text: str, question: str) -> None:
    assert phrase(quantity, WILDLIFE) == f" {in_text}"
    assert name(quantity, WILDLIFE) == in_text.removeprefix("the ").removeprefix("number of ")
    assert question_text(quantity, WILDLIFE) == question
    assert (
        "".join(fact_sentence(phrase(quantity, WILDLIFE), Fact(12, False, False, ()), []))
        == f" T{in_text[1:]} equals 12."
    )


def test_unknowns() -> None:
    count, average = ("".join(unknown_sentence(quantity, WILDLIFE)) for quantity in (COUNT, AVERAGE))
    assert count == " The number of grown otter in Gull Island exists, and its number is greater than 0."
    assert average == " The average number of young ones per grown otter in Gull Island is greater than 0."


def as_parsed(core: Core, quantity: int) -> parser.Fact:
    """The fact about an instance, in the parser's words."""
    names = [name(q, core.world) for q in core.quantities]
    fact, subject = core.facts[quantity], names[quantity]
    if quantity == core.unknown:
        return parser.Fact(subject, "unknown")
    form = (
        "difference" if fact.difference else ("number", "copy")[len(fact.operands)] if len(fact.operands) < 2 else "sum"
    )
    return parser.Fact(subject, form, tuple(names[q] for q in fact.operands), fact.constant, fact.times)


def test_the_parser_reads_back_every_fact() -> None:
    for core in cores():
        text = "".join(piece for pieces in core_sentences(core) for piece in pieces)
        parsed = parser.parse(text, question_text(core.quantities[core.asked], core.world))
        given = [] if core.unknown is None else [q for q in (core.needed[-1], core.decoy) if q is not None]
        numbers = [parser.Fact(name(core.quantities[q], core.world), "number", constant=core.values[q]) for q in given]
        assert list(parsed.facts) == [*(as_parsed(core, q) for q in core.instances), *numbers]
        assert parsed.asked == name(core.quantities[core.asked], core.world)


def test_pieces_begin_where_words_begin() -> None:
    pieces = {piece for core in cores() for sentence in core_sentences(core) for piece in sentence}
    assert {piece for piece in pieces if not piece.startswith(" ")} == {",", "."}
    assert not any(piece.endswith(" ") or "  " in piece for piece in pieces)
