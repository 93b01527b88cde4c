"""Hops against its own text: read again with regular expressions, every chain followed step by step."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from reading_pages import asked, decode, letters, needs_smollm2  # noqa: F401

from reverie.errors import UserError
from reverie.pretrained.speaker import SmolLM2Speaker
from reverie.tasks.fillers import FILLERS
from reverie.tasks.hops import NAMES, ROLE_TOKENS, ROLES, STATEMENT_TOKENS, VERBS, Hops
from reverie.tasks.reading import TokenPage, TokenQuestion

pytestmark = needs_smollm2

NUMBERS = ["One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight"]
Relations = dict[tuple[str, str], str]  # (subject, relation): object


@st.composite
def tasks(draw: st.DrawFn) -> Hops:
    relations, people, chains = draw(st.integers(1, 4)), draw(st.integers(2, 6)), draw(st.integers(1, 3))
    names = draw(st.integers(max(people * chains, 3), 30))
    free = people * chains * (relations - 1) if relations > 1 else names - people * chains
    distractors = draw(st.integers(0, min(free, 6)))
    windows = draw(st.integers(1, 3))
    needed = 1 + (people * chains + distractors) * (6 if relations > 1 else 5)
    return Hops(
        num_people=people,
        num_chains=chains,
        num_names=names,
        num_relations=relations,
        max_hops=draw(st.integers(1, people - 1)),
        distractors=distractors,
        verb=draw(st.sampled_from(VERBS)),  # type: ignore[arg-type]
        num_windows=windows,
        window_tokens=max(-(-needed // windows), 24) + draw(st.integers(0, 30)),
    )


def read_links(page: TokenPage) -> Relations:
    """Every link of a page, whose text holds nothing else but fillers, of which the last may be cut off."""
    text = decode(page.tokens)
    assert text.startswith("\n ")
    links: Relations = {}
    for sentence in re.findall(r" [^.]*(?:\.|$)", text[1:]):
        if by_role := re.fullmatch(r" ([A-Z]\w+)'s (\w+) is ([A-Z]\w+)\.", sentence):
            subject, relation, other = by_role.groups()
        elif by_verb := re.fullmatch(rf" ([A-Z]\w+) ({'|'.join(VERBS)}) ([A-Z]\w+)\.", sentence):
            subject, relation, other = by_verb.groups()
        else:
            assert any(filler.startswith(sentence) for filler in FILLERS)
            assert sentence in FILLERS or text.endswith(sentence)
            continue
        assert (subject, relation) not in links  # nobody has two links of one relation
        links[subject, relation] = other
    return links


def follow(question: str, links: Relations) -> tuple[str, int]:
    """The answer to a question as a reader of the links finds it, and the number of steps."""
    relations = {relation for _, relation in links}
    if plain := re.fullmatch(r"\n(\w+) hops? after (\w+) is", question):
        (verb,) = relations
        steps, person = [verb] * (NUMBERS.index(plain[1]) + 1), plain[2]
    else:
        by_role = re.fullmatch(r"\nThe ((?:\w+ of (?:the )?)+)([A-Z]\w+) is", question)
        assert by_role
        steps, person = re.findall(r"(\w+) of", by_role[1])[::-1], by_role[2]
    for step in steps:
        person = links[person, step]
    return person, len(steps)


def check(task: Hops, page: TokenPage, question: TokenQuestion, links: Relations) -> None:
    answer, hops = follow(decode(question.prompt), links)
    assert decode(question.answer) == f" {answer}<|im_end|>"
    assert question.depth == hops == task.depth_of(question)
    assert question.kind == "hops"
    assert (question.source is None) == (hops > 1)  # where passes put what they found, no text says
    if question.source is None:
        return
    start, stop = question.source
    assert page.tokens[start:stop] == question.answer[:-1]
    before = decode(page.tokens[:start])
    assert before.endswith((" is", *VERBS))  # where it is the object of a statement


@given(task=tasks(), seed=st.integers(0, 2**32), test=st.booleans())
@settings(max_examples=40, deadline=None)
def test_reader_recovers_chains_and_answers(task: Hops, seed: int, test: bool) -> None:
    people = task.num_people * task.num_chains
    for page in task.pages("test" if test else "train", seed, 3, range(2)):
        links = read_links(page)
        assert len(page.tokens) == task.text_tokens
        assert len(links) == people + task.distractors
        assert {name for name, _ in links} | set(links.values()) <= set(NAMES[: task.num_names])
        for question in page.questions:
            check(task, page, question, links)
        asked = [question.prompt for question in page.questions]
        assert len(set(asked)) == len(asked) == people * task.max_hops
        assert {question.about for question in page.questions} == page.facts
        if task.num_relations > 1:
            assert len({relation for _, relation in links}) <= task.num_relations


@given(task=tasks())
@settings(max_examples=10, deadline=None)
def test_answer_is_never_the_person_asked_about(task: Hops) -> None:
    for page in task.pages("train", 0, 0, range(3)):
        for question in page.questions:
            assert decode(question.answer[:-1]).strip() not in decode(question.prompt).split()


def test_lengths_are_those_promised() -> None:
    encode = SmolLM2Speaker().encode
    assert all(len(encode(f" {word}")[0]) == 1 for word in (*NAMES, *ROLES))
    assert all(len(encode(f" Tom {verb} Ann.")[0]) == STATEMENT_TOKENS for verb in VERBS)
    assert all(len(encode(f" Tom's {role} is Ann.")[0]) == ROLE_TOKENS for role in ROLES)
    assert len(set(NAMES)) == len(NAMES) >= 64
    page = Hops().pages("train", 0, 0, range(1))[0]
    assert len(page.tokens) == 41
    assert decode(page.tokens).endswith(".")  # 8 sentences and no filler
    assert len(read_links(page)) == 8
    questions = Hops(num_people=9, max_hops=8, window_tokens=46).pages("train", 0, 0, range(1))[0].questions
    assert {len(question.prompt) for question in questions} == {6}
    assert {len(question.answer) for question in questions} == {2}


def test_order_and_place_of_links_vary() -> None:
    task = Hops(num_windows=3)
    windows: Counter[int] = Counter()
    for page in task.pages("train", 0, 0, range(40)):
        windows.update((q.source[0] // task.window_tokens) for q in page.questions if q.source)
    assert min(windows[i] for i in range(3)) > sum(windows.values()) / 6


def test_depths_take_turns_in_tests_and_are_bounded_in_training() -> None:
    task = Hops(num_questions=4)
    starts = set()
    for page in task.pages("test", 0, 0, range(30), max_depth=1):
        depths = [task.depth_of(question) for question in page.questions]
        assert all(sorted(depths[i : i + 4]) == [1, 2, 3, 4] for i in range(0, 32, 4))
        starts.add(depths[0])
    assert starts == {1, 2, 3, 4}
    for page in task.pages("train", 0, 0, range(5), max_depth=2):
        assert Counter(map(task.depth_of, page.questions)) == {1: 8, 2: 8}


def test_example_depends_on_its_index_alone() -> None:
    task = Hops(num_windows=2, num_relations=2, window_tokens=41)
    whole = task.pages("train", 5, 7, range(6))
    assert task.pages("train", 5, 7, range(5, -1, -1)) == whole[::-1]
    assert task.pages("train", 5, 7, range(2, 4)) == whole[2:4]
    others = (
        *task.pages("test", 5, 7, range(6)),
        *task.pages("train", 6, 7, range(6)),
        *task.pages("train", 5, 8, range(6)),
    )
    assert all(page not in whole for page in others)


def test_batch_predicts_the_answers() -> None:
    task = Hops(num_questions=5, num_relations=3, window_tokens=60, distractors=1)
    batch = task.batch("train", 0, 0, range(3))
    assert batch.tokens.shape == (3, task.sequence_length)
    for row, page in enumerate(task.pages("train", 0, 0, range(3))):
        links = read_links(page)
        assert batch.tokens[row, : task.text_tokens].tolist() == list(page.tokens)
        for prompt, answer, depth in asked(task, batch, row):
            name, hops = follow(prompt, links)
            assert (answer, depth) == (f" {name}<|im_end|>", hops)
    assert torch.equal(batch.loss_mask, batch.question >= 0)


def test_chance_is_what_blind_guessing_gets() -> None:
    task = Hops(num_names=10, num_people=6, max_hops=3, window_tokens=31)
    right: Counter[int] = Counter()
    drawn: Counter[int] = Counter()
    for page in task.pages("train", 0, 0, range(60)):
        for question in page.questions:
            guess = next(name for name in NAMES[:10] if name not in decode(question.prompt))
            depth = task.depth_of(question)
            drawn[depth] += 1
            right[depth] += decode(question.answer[:-1]) == f" {guess}"
    for depth, chance in task.chance().items():
        assert chance == 1 / 9
        assert abs(right[depth] / drawn[depth] - chance) < 0.06
    assert task.chance_exact() == pytest.approx((1 / 9) ** 4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_people": 9, "num_chains": 2}, "must not exceed num_names 16"),
        ({"max_hops": 8}, "must be less than num_people 8"),
        ({"distractors": 9}, "at most 8, the number of names outside the chains"),
        ({"num_relations": 2, "distractors": 9}, "at most 8, the number of other roles"),
        ({"window_tokens": 40}, "need 41 tokens"),
        ({"num_relations": 2}, "need 49 tokens"),
        (
            {"num_relations": 2, "num_people": 8, "max_hops": 7, "window_tokens": 20, "num_windows": 3},
            "hold a question",
        ),
    ],
)
def test_bad_settings_get_a_sentence(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Hops(**values)  # type: ignore[arg-type]


def test_other_tokenizers(letters: str) -> None:  # noqa: F811
    with pytest.raises(UserError, match=r"the links of hops need \d+ tokens .* but a page has 41"):
        Hops(tokenizer=letters).pages("train", 0, 0, range(1))
    page = Hops(tokenizer=letters, window_tokens=200).pages("train", 0, 0, range(1))[0]
    text = "".join(map(chr, page.tokens))
    assert len(re.findall(r" \w+ points to \w+\.", text)) == 8
    assert all(
        "".join(map(chr, q.answer[:-1])) == f" {text[q.source[0] + 1 : q.source[1]]}"
        for q in page.questions
        if q.source
    )
