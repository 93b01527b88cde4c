"""Word problems as pages: an independent solver finds each answer in what the page says, in as many operations."""

from __future__ import annotations

import pytest
from reading_pages import needs_smollm2

from reverie.pretrained.speaker import speaker_of
from reverie.tasks import Split
from reverie.tasks.fillers import FILLERS
from reverie.tasks.gsm_infinite import GsmPages, count_operations, solve
from reverie.tasks.reading import Page, generator_of

pytestmark = needs_smollm2


def page(split: Split, example: int, deepest: int | None = None, **changes: int) -> Page:
    speaker, task = speaker_of("smollm2"), GsmPages.model_validate(changes)
    return task.page(split, generator_of(split, 0, 0, example), lambda text: len(speaker.encode(text)[0]), deepest)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_solver_finds_every_answer_in_as_many_operations(split: Split) -> None:
    depths = set[int]()
    for example in range(25):
        found = page(split, example)
        facts = found.text[1:]
        for filler in FILLERS:
            facts = facts.replace(filler[1:], "")
        facts = " ".join(facts.split())
        assert found.questions
        assert len({question.text for question in found.questions}) == len(found.questions)
        for question in found.questions:
            assert solve(facts, question.text) == int(question.answer) < 10
            assert count_operations(facts, question.text) == question.depth
            depths.add(question.depth or 0)
    assert depths == set(range(1, 7))


def test_nothing_deeper_is_asked_and_problems_are_no_deeper_than_may_be_asked() -> None:
    for example in range(10):
        assert {question.depth for question in page("train", example, deepest=1).questions} <= {1}
        assert max(question.depth or 0 for question in page("train", example, max_operations=2).questions) <= 2


def test_pages_fill_their_window_and_are_drawn_by_split_seed_step_and_example() -> None:
    task = GsmPages()
    pages = task.pages("train", 0, 0, range(6))
    assert [len(one.tokens) for one in pages] == [task.text_tokens] * 6
    assert pages == task.pages("train", 0, 0, range(6))
    others = [*task.pages("test", 0, 0, range(6)), *task.pages("train", 1, 0, range(6))]
    assert len({one.tokens for one in (*pages, *others)}) == 18
    assert all(one.facts == {"the problem"} for one in pages)
    assert set(task.chance()) == set(task.depths()) == set(range(1, 7))
    assert all(0.1 < share < 0.6 for share in task.chance().values())
