"""Pages of notes against an independent reader, and what training must never see."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from notes_reader import FOLDER, HELD_OUT, Read, best, patterns, phrases, plain, read, resolved
from reading_pages import needs_smollm2

from reverie.tasks import Split
from reverie.tasks.notes import Notes
from reverie.tasks.reading import NOTHING_KNOWN, Page, Question, as_tokens

PAGES = 60


class Letters:
    """A tokenizer that needs no file: each word or mark is a token, with the space before it."""

    end_id, vocab_size = 0, 1000

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        pieces = list(re.finditer(r" ?(\d|[^\W\d]+|\W)", text))
        return [1 + sum(piece[0].encode()) for piece in pieces], [piece.end() for piece in pieces]

    def turn(self, text: str) -> str:
        return f"User: {text} Answer:"


def count(text: str) -> int:
    return len(Letters().encode(text)[0])


def make(split: Split, seed: int, task: Notes | None = None) -> Page:
    return (task or Notes()).page(split, np.random.Generator(np.random.Philox(seed)), count, None)


@lru_cache(maxsize=2)
def pages(split: Split) -> list[Page]:
    """Pages of one window and of three."""
    return [make(split, seed, Notes(num_windows=1 + seed % 2 * 2, facts_changed=0.3)) for seed in range(PAGES)]


@lru_cache(maxsize=2)
def facts_read(split: Split) -> list[list[Read]]:
    return [read(page.text) for page in pages(split)]


def newest(facts: list[Read]) -> dict[str, Read]:
    """What counts of the facts read, by the words of `Question.about`."""
    return {f"{fact.pattern.relation}|{fact.subject}": fact for fact in facts}


def questions(split: Split, known: bool) -> list[Question]:
    return [q for page in pages(split) for q in page.questions if (q.source is not None) == known]


def as_read(question: Question, facts: list[Read]) -> tuple[str, bool, str]:
    """What a question about a page is about, if its wording is held out, and in which file that stands."""
    text = question.text
    for words in phrases("asking"):
        text = text.removeprefix(f"{words} ")
    pattern, match = best(text, patterns().clozes if question.form.endswith("cloze") else patterns().asked)
    subject = plain(match["s"], pattern)
    if pattern.kind == "person":
        subject = resolved(subject, [fact.subject for fact in facts])
    return f"{pattern.relation}|{subject}", pattern.held_out, pattern.file


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("number", [2, pytest.param(PAGES, marks=pytest.mark.slow)])
def test_reader_recovers_facts_and_answers(split: Split, number: int) -> None:
    for page in pages(split)[:number]:
        facts = read(page.text) if number < PAGES else facts_read(split)[pages(split).index(page)]
        found = newest(facts)
        assert found.keys() == page.facts
        for question in page.questions:
            about, _, _ = as_read(question, facts)
            assert about == question.about
            if question.source is None:
                assert (question.answer, about in found) == (NOTHING_KNOWN, False)
                assert question.kind.startswith("unknown/")
            else:
                assert (question.answer, question.source) == (found[about].value, found[about].place)


@pytest.mark.slow
def test_newest_counts() -> None:
    """Some facts change, with changing words and as corrections; the older value is never the answer."""
    changed = 0
    for page, facts in zip(pages("train"), facts_read("train"), strict=True):
        older = Counter(f"{fact.pattern.relation}|{fact.subject}" for fact in facts)
        asked = {question.about for question in page.questions if question.source}
        changed += sum(number > 1 for number in older.values())
        assert asked == older.keys()
    assert changed > PAGES / 2


@pytest.mark.slow
def test_unknown_asks_for_names_of_the_page_and_for_others() -> None:
    for page, facts in zip(pages("test"), facts_read("test"), strict=True):
        subjects = {fact.subject for fact in facts}
        for question in page.questions:
            if question.source is None:
                named = question.about.split("|")[1] in subjects
                assert question.kind == ("unknown/relation" if named else "unknown/subject")


@pytest.mark.slow
def test_no_wording_or_kind_held_out_in_training() -> None:
    assert not any(fact.pattern.held_out for facts in facts_read("train") for fact in facts)
    for page, facts in zip(pages("train"), facts_read("train"), strict=True):
        assert not any(as_read(question, facts)[1] for question in page.questions)


@pytest.mark.slow
def test_no_name_or_value_held_out_in_training() -> None:
    """Tests share no subject and no value with training, and no first name and no surname."""

    titles = {"Aunt", "Uncle", "Mr", "Mrs", "Ms", "Dr"}

    def names(split: Split) -> set[str]:
        found = set()
        for fact in (fact for facts in facts_read(split) for fact in facts):
            for name in (fact.subject, fact.value):
                found |= {
                    name,
                    *(set(name.split()) - titles if re.fullmatch("[A-Z][a-z]+ [A-Z][A-Za-z]+", name) else ()),
                }
        return found

    ends_of_firms = set((FOLDER / "words.txt").read_text().split("[firm end]\n")[1].split("\n")[0].split(", "))
    assert not (names("train") & names("test")) - ends_of_firms


@pytest.mark.slow
def test_kinds_of_question_in_tests() -> None:
    """The kind says what else is new, and each is frequent."""
    for page, facts in zip(pages("test"), facts_read("test"), strict=True):
        found = newest(facts)
        told = Counter(f"{fact.pattern.relation}|{fact.subject}" for fact in facts)
        for question in (q for q in page.questions if q.source):
            _, new, file = as_read(question, facts)
            if told[question.about] > 1:
                assert question.kind == "changed"
            elif file == HELD_OUT:
                assert question.kind == "kinds"
            elif new or found[question.about].pattern.held_out:
                assert question.kind == "wordings"
            else:
                number = re.search(
                    r"\d|o'clock|half past|\b(past|to) \w+$", question.answer
                ) or question.about.startswith("user name|")
                assert question.kind == ("numbers" if number else "names")
    kinds = Counter(question.kind for page in pages("test") for question in page.questions)
    total = sum(kinds.values())
    assert min(kinds[kind] / total for kind in ("kinds", "wordings", "names", "numbers")) > 0.05
    assert min(kinds[kind] / total for kind in ("unknown/relation", "unknown/subject", "changed")) > 0.015


@pytest.mark.parametrize("split", ["train", "test"])
def test_shares_and_differences_of_questions(split: Split) -> None:
    for page in pages(split):
        assert len({(question.form, question.text) for question in page.questions}) == len(page.questions)
        assert max(Counter(q.about for q in page.questions if q.source).values()) <= Notes().questions_per_fact
    forms = Counter(question.form for question in questions(split, known=True))
    shares = {form: number / forms.total() for form, number in forms.items()}
    assert shares == pytest.approx({"cloze": 0.18, "chat_cloze": 0.27, "qa": 0.22, "chat": 0.33}, abs=0.05)
    unknown = len(questions(split, known=False))
    assert unknown / (unknown + forms.total()) == pytest.approx(0.06, abs=0.015)
    assert all(question.form in ("qa", "chat") for question in questions(split, known=False))


def test_density_and_shared_subjects() -> None:
    """About eight facts in a window, about fewer subjects; in many pages several subjects have the same relation."""
    some = [newest(facts) for facts in facts_read("train")[::2]]  # pages of one window
    assert 6.5 < np.mean([len(found) for found in some]) < 9.5
    subjects = [len({key.split("|")[1] for key in found}) for found in some]
    assert 4 < np.mean(subjects) < 7
    repeated = [max(Counter(key.split("|")[0] for key in found).values()) > 1 for found in some]
    assert np.mean(repeated) > 0.3


@pytest.mark.parametrize("split", ["train", "test"])
def test_english(split: Split) -> None:
    texts = [page.text for page in pages(split)] + [q.text for page in pages(split) for q in page.questions]
    for text in texts:
        assert re.match("[A-Z]", text)
        assert not re.search(
            r"\b[Aa] (?!un[ie]|uk|eu|on)[aeio]\w|\b[Aa]n [^aeiouh ]", re.sub(r"\d+ ?[ap]m", "", text)
        ), text
        assert not re.search(r"[.?] [a-z]|  |[{}|]|@(?!\w)|\b(the the|a the|my my)\b", text), text
        assert not re.search(r"special magic|VAR |magic number", text)


def test_curves_do_not_depend_on_division() -> None:
    task = Notes(window_tokens=64)
    whole = task.pages("train", 5, 3, range(6))
    assert whole == [page for i in range(6) for page in task.pages("train", 5, 3, range(i, i + 1))]
    assert task.pages("train", 5, 3, range(5, -1, -1)) == whole[::-1]
    assert len({page.tokens for page in (*whole, *task.pages("test", 5, 3, range(6)))}) == 12


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(16, 300), st.sampled_from(["train", "test"]))
def test_cut_anywhere(seed: int, length: int, split: Split) -> None:
    """Exactly the questions whose answers stand beyond the cut are dropped."""
    page, speaker = make(split, seed, Notes(num_windows=3, window_tokens=100)), Letters()
    ends = speaker.encode(page.text)[1]
    kept = [q for q in page.questions if q.source is None or q.source[1] <= ends[length - 1]]
    cut = as_tokens(page, speaker, length)
    assert [(q.about, q.kind) for q in cut.questions] == [(q.about, q.kind) for q in kept]


@needs_smollm2
@pytest.mark.parametrize("split", ["train", "test"])
def test_pages_are_as_long_as_windows(split: Split) -> None:
    """Joined sentences have fewer tokens than each by itself."""
    assert {len(page.tokens) for page in Notes().pages(split, 0, 0, range(100, 180))} == {128}


def test_long_pages_end() -> None:
    """Short lists of words do not run out."""
    page = make("test", 1, Notes(num_windows=30))
    assert count(page.text) >= 30 * 128
