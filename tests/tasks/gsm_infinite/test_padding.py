"""Padding has the length that is wanted, looks like the core, and changes nothing."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from problem_sets import core_of, is_padding, padded_problems, padding_places, sentences, values_in_text

from reverie.tasks.gsm_infinite.core import Level
from reverie.tasks.gsm_infinite.generator import Problem
from reverie.tasks.gsm_infinite.padding import padding_sentences
from reverie.tasks.gsm_infinite.parser import Fact, is_average, is_total, parse
from reverie.tasks.gsm_infinite.solver import work_out

each_level = pytest.mark.parametrize("level", ["medium", "hard"])


def padding_facts(problem: Problem) -> list[Fact]:
    return [fact for fact in parse(problem.problem, problem.question).facts if is_padding(fact, problem)]


def length_of(level: Level, at_least: int, at_most: int) -> int:
    drawn = padding_sentences(Random(5), core_of(1, 6, level=level), at_least, at_most, len)
    return sum(len(piece) for pieces in drawn for piece in pieces)


@each_level
@pytest.mark.parametrize(("at_least", "at_most"), [(1, 400), (1000, 1200), (5000, 5300), (5000, 90_000)])
def test_length(level: Level, at_least: int, at_most: int) -> None:
    """Enough, and not a sentence more."""
    assert at_least <= length_of(level, at_least, at_most) <= min(at_most, at_least + 400)


@each_level
def test_there_may_be_too_little_room_or_too_few_names(level: Level) -> None:
    assert length_of(level, 0, 100) == length_of(level, 10, 20) == 0
    assert 600 < length_of(level, 999, 999) <= 999
    assert 200_000 < length_of(level, 10**9, 10**9) < 10**7


def test_the_core_s_sentences_alone_are_the_same_problem() -> None:
    """No padding place is one of the core's, no core fact reads padding, and the solution does not touch it."""
    for problem in padded_problems():
        places = padding_places(problem)
        core = [text for text in sentences(problem) if not any(f" in {place} " in text for place in places)]
        padding = padding_facts(problem)
        assert len(core) + len(padding) == len(sentences(problem))
        assert len(padding) > 15
        assert not any(place in sentence for place in places for sentence in core)
        alone = work_out(parse(" ".join(core), problem.question))
        assert alone == work_out(parse(problem.problem, problem.question))
        assert (alone.answer, alone.operations) == (problem.answer, problem.operations)


def test_padding_facts_have_the_benchmark_s_forms() -> None:
    kinds: Counter[str] = Counter()
    for problem in padded_problems():
        facts = padding_facts(problem)
        subjects = [fact.subject for fact in facts]
        assert len(set(subjects)) == len(subjects)
        assert any(is_average(subject) for subject in subjects) == (problem.level == "hard")
        assert all(len(set(fact.operands)) == len(fact.operands) for fact in facts)
        kinds.update(fact.kind for fact in facts)
    shares = {kind: n / kinds.total() for kind, n in kinds.items()}
    assert shares == pytest.approx({"Y": 0.46, "sum2": 0.27, "diff2": 0.27}, abs=0.06)


def test_padding_reads_the_core_and_totals_of_its_other_places_once_each() -> None:
    seen = 0
    for problem in padded_problems():
        facts, places = padding_facts(problem), padding_places(problem)
        from_padding = [(f, q) for f in facts for q in f.operands if q.rpartition(" in ")[2] in places]
        assert all(is_total(q) for _, q in from_padding)
        assert len({q for _, q in from_padding}) == len(from_padding)
        assert all(q.rpartition(" in ")[2] != f.subject.rpartition(" in ")[2] for f, q in from_padding)
        seen += len(from_padding)
    assert seen > 10


def test_no_value_gives_padding_away_as_impossible() -> None:
    for problem in padded_problems():
        assert min(values_in_text(problem).values()) >= 1
