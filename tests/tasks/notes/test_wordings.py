"""The wordings of notes: enough of them, and each says one thing."""

from __future__ import annotations

from collections import Counter

import pytest
from notes_reader import phrases

from reverie.tasks.notes.wordings import Relation, article, relations, relations_of
from reverie.tasks.notes.words import NUMBERS, split_of


def test_numbers_of_kinds_and_wordings() -> None:
    held_out = [relation for relation in relations() if relation.held_out]
    assert len(held_out) >= 35
    assert len(relations()) - len(held_out) >= 250
    for relation in relations():
        assert len(relation.ending) + len(relation.other) >= 8, relation.name
        assert len(relation.ending) >= 4, relation.name
        assert len(relation.asked) >= 4, relation.name


def test_names_of_kinds_differ() -> None:
    assert len({relation.name for relation in relations()}) == len(relations())
    assert len([r for held_out in (False, True) for some in relations_of(held_out).values() for r in some]) == len(
        relations()
    )


@pytest.mark.parametrize("relation", relations(), ids=lambda relation: relation.name)
def test_fields_of_wordings(relation: Relation) -> None:
    """Each has its subject once; in statements something stands between subject and value; questions are questions."""
    for wording in (*relation.ending, *relation.other, *relation.changed, *relation.asked):
        assert sum(part.count("{s}") for part in wording) == 1, wording
        assert not {"S", "V"} & set(" ".join(wording).split()), wording
    for wording in (*relation.ending, *relation.other, *relation.changed):
        assert wording.before.rstrip() == wording.before[:-1] or not wording.before, wording
        assert not wording.before.endswith("{s} ") or relation.value == "spot", wording  # "… my keys under the mat"
    assert all(wording.before.endswith("?") and not wording.after for wording in relation.asked)
    assert not any(wording.after for wording in (*relation.ending, *relation.changed))


def test_no_wording_has_two_meanings() -> None:
    """A question or the beginning of a sentence belongs to one relation."""
    wordings = [wording.before for relation in relations() for wording in (*relation.ending, *relation.asked)]
    assert [wording for wording, number in Counter(wordings).items() if number > 1] == []


def test_no_wording_begins_like_an_opening() -> None:
    """So no opening makes a trained wording the one held out."""
    openings = (*phrases("beginnings"), *phrases("corrections"))
    for relation in relations():
        for wording in (*relation.ending, *relation.other, *relation.changed):
            assert not wording.before.startswith(openings), wording


def test_article() -> None:
    an = ["apple", "old clock", "hourglass", "umbrella", "ugly hat", "honest man", "interpreter"]
    a = ["baker", "ukulele", "unicorn", "European", "one-eyed cat", "horse", "house painter", "yak"]
    assert {article(value) for value in an} == {"an"}
    assert {article(value) for value in a} == {"a"}


def test_a_fifth_of_all_numbers_is_for_tests() -> None:
    for first, last in ((18, 98), (1000, 10000)):
        tests = [number for number in range(first, last) if split_of(str(number)) == "test"]
        assert 0.1 < len(tests) / (last - first) < 0.3
    assert NUMBERS.keys() >= {"code", "date", "time", "price", "phone"}
