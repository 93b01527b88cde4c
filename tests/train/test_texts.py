"""Texts put together from pages: which, in which order, and which questions, depend on seed, step and row alone."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch

from reverie.hf.frozen import PageStates
from reverie.recipe.adapt import AdaptConfig
from reverie.tasks.reading import TokenPage, TokenQuestion
from reverie.train.texts import Plan, buckets, pages_in_use, plan_texts, put_together, side_by_side

T, END = 12, 999  # tokens of a page


def config(**changes: Any) -> AdaptConfig:
    return AdaptConfig.model_validate({"pool": 40, "pages": (1, 3), "start": {"pages": 4}, **changes})


def question(page: int, place: int | None, about: str, depth: int | None = None, words: Any = None) -> TokenQuestion:
    """About the two tokens of the page at `place`, or about nothing that it says."""
    said = (100 * page + place, 100 * page + place + 1) if place is not None else (7,)
    source = None if place is None else (place, place + 2)
    prompt = tuple(range(50, 53 + page % 3))
    return TokenQuestion(prompt, (*(words or said), END), "names", about, source, depth)


def page(index: int, *questions: TokenQuestion, facts: tuple[str, ...] = ()) -> PageStates:
    """Token t of page i is 100 i + t, and so are its states."""
    tokens = tuple(100 * index + t for t in range(T))
    asked = tuple(torch.full((len(q.prompt) + len(q.answer) - 1, 2), index + 0.5) for q in questions)
    known = {q.about for q in questions if q.source} | set(facts)
    states = torch.tensor(tokens).float()[:, None].expand(-1, 2)
    return PageStates(TokenPage(tokens, questions, frozenset(known)), states, asked, (None,) * len(questions))


POOL = [page(i, *(question(i, t, f"{i}-{t}") for t in range(0, T - 1, 2))) for i in range(40)]


def text_of(plan: Plan, pool: Any = POOL, rows: range | None = None, questions: int = 3, **limits: int) -> Any:
    rows = range(len(plan.pages)) if rows is None else rows
    return put_together(plan, pool, rows, questions, limits.get("deepest", 4), limits.get("longest", 100))


def test_a_plan_is_a_function_of_seed_and_step() -> None:
    plans = [plan_texts(config(), 100, 8, seed, step) for seed in (0, 1) for step in (50, 51)]
    again = [plan_texts(config(), 100, 8, seed, step) for seed in (0, 1) for step in (50, 51)]
    assert plans == again
    assert len({str(plan) for plan in plans}) == 4
    for plan in plans:
        assert all(len(set(pages)) == len(pages) == len(plan.pages[0]) for pages in plan.pages)
        assert len(plan.pages) == 8 // len(plan.pages[0])
    lengths = {len(plan_texts(config(), 100, 8, 0, step).pages[0]) for step in range(40)}
    assert lengths == {1, 2, 3}


def test_texts_have_at_least_one_row_and_no_more_pages_than_there_are() -> None:
    assert len(plan_texts(config(pages=(3, 3)), 100, 2, 0, 99).pages) == 1
    pages, _ = plan_texts(config(pages=(9, 9), pool=4, start=False), 100, 9, 0, 99).pages
    assert sorted(pages) == [0, 1, 2, 3]


def test_the_pool_grows_as_stated() -> None:
    grown = [pages_in_use(config(), 100, step) for step in range(100)]
    assert grown[0] == 4  # those that the start was made of
    assert all(before <= after for before, after in pairwise(grown))
    assert grown[49:] == [40] * 51
    assert grown[24] == 20
    assert pages_in_use(config(start=False), 100, 0) == 1
    assert pages_in_use(config(pool_full_at=1.0), 100, 98) == 40
    assert pages_in_use(config(start={"pages": 99}), 100, 0) == 40
    for step in range(100):
        used = {i for pages in plan_texts(config(), 100, 8, 0, step).pages for i in pages}
        assert max(used) < grown[step]


def test_rows_shared_out_are_the_same_rows() -> None:
    plan = plan_texts(config(pages=(2, 2)), 100, 16, 0, 60)
    whole = text_of(plan)
    parts = [text_of(plan, rows=range(0, 3)), text_of(plan, rows=range(3, 8))]
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    assert torch.equal(torch.cat([part.states for part in parts]), whole.states)
    moved = [one._replace(row=one.row + 3) for one in parts[1].asked]
    ours, theirs = ([(a.row, a.question, a.source) for a in asked] for asked in (parts[0].asked + moved, whole.asked))
    assert ours == theirs


def test_a_text_is_its_pages_and_a_source_is_where_the_answer_stands() -> None:
    plan = plan_texts(config(pages=(3, 3)), 100, 12, 0, 99)
    text = text_of(plan)
    for row, pages in enumerate(plan.pages):
        assert text.tokens[row].tolist() == [token for i in pages for token in POOL[i].page.tokens]
    assert torch.equal(text.states[..., 0], text.tokens.float())
    assert len(text.asked) == 4 * 9
    for one in text.asked:
        words = one.question.words
        assert text.tokens[one.row, one.source : one.source + len(words)].tolist() == list(words)
        index = one.question.words[0] // 100
        assert (one.states == index + 0.5).all()
    of_page = Counter(plan.pages[one.row].index(one.question.words[0] // 100) for one in text.asked)
    assert of_page.keys() == {0, 1, 2}  # all pages are asked about, not the newest alone
    assert {len({(a.row, a.question) for a in text.asked})} == {len(text.asked)}


def test_windows_of_plain_text_stand_anywhere_among_the_pages_and_are_asked_nothing() -> None:
    """Beside them the plan is what it is without: the same pages in the same order, and questions about those alone."""
    among = config(plain_among=(1, 3))
    plans = [(plan_texts(among, 100, 8, 0, step, 5), plan_texts(config(), 100, 8, 0, step)) for step in range(60)]
    counts, places = set[int](), set[tuple[int, int]]()
    for plan, without in plans:
        assert [[i for i in text if i < 40] for text in plan.pages] == without.pages
        extra = {len(text) - len(pages) for text, pages in zip(plan.pages, without.pages, strict=True)}
        assert len(extra) == 1  # texts of a step have one length
        counts |= extra
        places |= {(len(text), place) for text in plan.pages for place, i in enumerate(text) if i >= 40}
        assert {i for text in plan.pages for i in text} <= set(range(45))
    assert counts == {1, 2, 3}
    assert places == {(length, place) for length in range(2, 7) for place in range(length)}
    pool = dict(enumerate(POOL)) | {40 + i: page(40 + i) for i in range(5)}
    plan = next(plan for plan, _ in plans if len(plan.pages[0]) == 4)
    text = text_of(plan, pool, questions=2)
    for row, pages in enumerate(plan.pages):
        assert text.tokens[row].tolist() == [token for i in pages for token in pool[i].page.tokens]
        assert sum(one.row == row for one in text.asked) == 2 * sum(i < 40 for i in pages)
    for one in text.asked:
        words = one.question.words
        assert text.tokens[one.row, one.source : one.source + len(words)].tolist() == list(words)


def test_plain_text_after_a_page_does_not_make_its_deep_questions_wrong() -> None:
    deep = question(0, 2, "a", depth=3)
    pool = {0: page(0, deep), 1: page(1), 2: page(2, question(2, 4, "b", depth=3))}
    assert [one.question for one in text_of(Plan([[0, 1]], (0, 0)), pool).asked] == [deep]
    assert [one.question.about for one in text_of(Plan([[0, 2, 1]], (0, 0)), pool).asked] == ["b"]


def two(first: PageStates, second: PageStates, order: list[int], **limits: Any) -> list[TokenQuestion]:
    return [one.question for one in text_of(Plan([order], (0, 0)), [first, second], **limits).asked]


def test_a_fact_that_a_later_page_changes_is_asked_of_the_later_page_alone() -> None:
    old, new = question(0, 2, "code"), question(1, 4, "code")
    first, second = page(0, old), page(1, new)
    assert two(first, second, [0, 1]) == [new]
    assert two(first, second, [1, 0]) == [old]
    told = page(1, facts=("code",))  # which says so, and asks nothing
    assert two(first, told, [0, 1]) == []
    assert two(first, told, [1, 0]) == [old]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_what_is_unknown_must_be_unknown_to_all_pages(order: list[int]) -> None:
    unknown = question(0, None, "birthday of Marta")
    assert two(page(0, unknown), page(1, question(1, 0, "x")), order).count(unknown) == 1
    assert two(page(0, unknown), page(1, facts=("birthday of Marta",)), order) == []


def test_questions_with_a_depth_of_their_own_are_about_the_newest_page() -> None:
    """A chain of hops goes through people of whom a page in between says other things."""
    first, second = (page(i, question(i, 0, f"{i} hops", depth=2), question(i, 2, "x", depth=3)) for i in (0, 1))
    assert [q.about for q in two(first, second, [0, 1], deepest=2)] == ["1 hops"]
    assert [q.about for q in two(first, second, [1, 0], deepest=2)] == ["0 hops"]
    assert {q.depth for q in two(first, second, [1, 0], deepest=3)} == {2, 3}


def test_what_is_too_deep_or_too_long_is_not_asked() -> None:
    short, deep = question(0, 0, "a"), question(0, 2, "b", depth=3)
    (only,) = text_of(Plan([[0]], (0, 0)), [page(0, short, deep)], deepest=2).asked
    assert only.question == short
    assert not text_of(Plan([[0]], (0, 0)), [page(0, short)], longest=len(short.prompt) + 1).asked
    assert text_of(Plan([[0]], (0, 0)), [page(0, short)], longest=len(short.prompt) + 2).asked


def test_an_answer_that_does_not_stand_there_token_by_token_has_no_source() -> None:
    (one,) = text_of(Plan([[0]], (0, 0)), [page(0, question(0, 2, "a", words=(5, 6)))]).asked
    assert one.source is None


def test_side_by_side_every_answer_is_predicted_from_the_token_before() -> None:
    text = text_of(plan_texts(config(pages=(2, 2)), 100, 8, 0, 99))
    parts = buckets(text.asked, 3)
    assert sum(map(len, parts)) == len(text.asked)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [max(len(a.states) for a in part) for part in parts] == sorted(max(len(a.states) for a in p) for p in parts)
    for part in parts:
        batch = side_by_side(part)
        row = 0
        for (q, place), target, ends, source in zip(
            batch.at.T.tolist(), batch.targets, batch.ends, batch.sources, strict=True
        ):
            one = part[q].question
            said = [*one.prompt, *one.answer]
            assert said[place + 1] == target
            assert batch.tokens[q, : len(said) - 1].tolist() == said[:-1]
            assert bool(ends) == (target == END)
            assert int(source) == -100 if ends else text.tokens[part[q].row, source] == target
            row = max(row, q)
        assert row == len(part) - 1
        assert math.prod(batch.states.shape[:2]) == batch.tokens.numel()
    assert buckets(text.asked[:2], 4) == [[a] for a in sorted(text.asked[:2], key=lambda a: len(a.states))]


def test_an_answer_that_nothing_ends_is_all_words() -> None:
    open_ended = question(0, 0, "a")._replace(ends=False)
    batch = side_by_side(text_of(Plan([[0]], (0, 0)), [page(0, open_ended)]).asked)
    assert not batch.ends.any()
    assert len(batch.targets) == 3
