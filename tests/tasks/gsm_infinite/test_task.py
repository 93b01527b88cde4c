"""GSM-Infinite as a task: tokens are decoded back to text, the text solved, and the targets compared."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import combinations
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from reverie.errors import UserError
from reverie.pretrained.smollm2 import load_smollm2
from reverie.tasks import Batch, GsmInfinite, Split
from reverie.tasks.gsm_infinite.solver import count_operations, solve

WORDS: dict[str, Any] = {"length": (120, 160), "tokenizer": "words", "instruction": False}
MANY: dict[str, Any] = {
    **WORDS,
    "length": (150, 190),
    "num_questions": 6,
    "question_position": "last",
    "modes": ("forward",),
    "max_value": 9,
}


@cache
def task(**settings: Any) -> GsmInfinite:
    return GsmInfinite.model_validate(settings)


ONE = task(**WORDS)
SEVERAL = task(**MANY)
SMALL = task(**{**MANY, "worlds": ("film",), "max_operations": 3, "num_questions": 3})
both_splits = pytest.mark.parametrize("split", ["train", "test"])
both_tasks = pytest.mark.parametrize("gsm", [ONE, SEVERAL], ids=["one", "several"])


def needs_smollm2() -> None:
    try:
        load_smollm2()
    except UserError as error:
        pytest.skip(str(error))


def rows(gsm: GsmInfinite, split: Split, number: int, max_depth: int | None = None) -> list[list[list[int]]]:
    """Tokens, targets, mask, depth and question of each example."""
    batch = gsm.batch(split, 0, 2, range(number), max_depth)
    return [[field[row].tolist() for field in batch] for row in range(number)]


def text_of(gsm: GsmInfinite, ids: list[int]) -> str:
    """Text without padding on the left; fails if there is padding elsewhere."""
    first = next(i for i, token in enumerate(ids) if token != gsm.pad_id)
    assert gsm.pad_id not in ids[first:]
    return gsm.text.decode(ids[first:])


def check_one(gsm: GsmInfinite, row: list[list[int]], *, low: int, high: int) -> tuple[str, int, int]:
    """All that holds for an example with one question; returns its text, depth and answer."""
    tokens, targets, mask, depth, question = row
    start, end = gsm.sections()[0].length, gsm.sequence_length
    scored = [t for t in range(end) if mask[t]]
    written = [targets[t] for t in scored]
    assert scored == list(range(start - 1, start - 1 + len(scored)))
    assert {depth[t] for t in scored} == {depth[start - 1]}
    assert {question[t] for t in scored} == {0}
    assert written[-1] == gsm.end_id
    assert tokens[start : start + len(scored) - 1] == written[:-1]  # each is shown once it was predicted
    assert all(token == gsm.pad_id for token in tokens[start + len(scored) - 1 :])
    assert [(targets[t], depth[t], question[t]) for t in range(end) if not mask[t]] == [(0, 0, -1)] * (
        end - len(scored)
    )
    prompt = text_of(gsm, tokens[:start])
    assert prompt.endswith("Answer:")
    assert low <= start - next(i for i, token in enumerate(tokens) if token != gsm.pad_id) <= high
    return prompt, depth[start - 1], int(gsm.text.decode(written[:-1]))


def solved(prompt: str) -> tuple[int, int]:
    """Answer and operations of a prompt with the question first or last."""
    text = prompt.strip().removesuffix(" Answer:")
    first, second = text.split("Problem: ")
    problem, question = (second, first) if "Question: " in first else second.split(" Question: ")
    question = question.split("Question: ")[-1].strip()
    return solve(problem, question), count_operations(problem, question)


# One question


@both_splits
@pytest.mark.parametrize("position", ["first", "last"])
def test_tokens_are_the_prompt_and_its_answer(split: Split, position: str) -> None:
    gsm = task(**{**WORDS, "question_position": position})
    for index, row in enumerate(rows(gsm, split, 24)):
        prompt, depth, answer = check_one(gsm, row, low=120, high=160)
        assert (answer, depth) == solved(prompt)
        assert prompt == gsm.problem(split, 0, 2, index, depth).prompt
        assert prompt.startswith("Question:" if position == "first" else "Problem:")


@both_splits
def test_the_same_in_smollm2_s_tokens(split: Split) -> None:
    needs_smollm2()
    gsm = task(length=(800, 1000))
    assert (gsm.vocab_size, gsm.sequence_length) == (49152, 1005)
    assert {gsm.token_names()[i] for i in (gsm.pad_id, gsm.end_id)} == {"<|im_start|>", "<|endoftext|>"}
    for row in rows(gsm, split, 12):
        prompt, depth, answer = check_one(gsm, row, low=800, high=1000)
        assert (answer, depth) == solved(prompt)
        assert "Read the facts" in prompt


def test_the_longest_answer_fits() -> None:
    digits = {max_value: task(**{**WORDS, "max_value": max_value}).sections()[1].length for max_value in (9, 99, 1000)}
    assert digits == {9: 1, 99: 2, 1000: 4}
    batch = task(**{**WORDS, "max_value": 99, "min_operations": 5}).batch("train", 0, 0, range(50))
    assert batch.loss_mask.sum(1).unique().tolist() == [2, 3]  # digits, and the end
    assert batch.tokens[:, -1].unique().tolist() != [0]


# Several questions


def check_many(gsm: GsmInfinite, row: list[list[int]]) -> list[int]:
    """All that holds for an example with several questions; returns their depths."""
    tokens, targets, mask, depth, question = row
    context, length = gsm.sections()[0].length, gsm.sections()[1].length // gsm.num_questions
    scored = [t for t in range(gsm.sequence_length) if mask[t]]
    assert scored == [context + length * (i + 1) - 1 for i in range(len(scored))]
    assert [question[t] for t in scored] == list(range(len(scored)))
    assert all(token == gsm.pad_id for token in tokens[scored[-1] + 1 :])
    problem = text_of(gsm, tokens[:context])
    assert problem.startswith("Problem: ")
    asked = [text_of(gsm, tokens[t + 1 - length : t + 1]) for t in scored]
    assert len(set(asked)) == len(asked)
    for t, text in zip(scored, asked, strict=True):
        facts = problem.removeprefix("Problem: ")
        assert gsm.token_names()[targets[t]] == str(solve(facts, text))
        assert depth[t] == count_operations(facts, text)
    return [depth[t] for t in scored]


@both_splits
def test_every_question_is_answered_rightly(split: Split) -> None:
    asked = [check_many(SEVERAL, row) for row in rows(SEVERAL, split, 48)]
    assert {len(depths) for depths in asked} >= {5, 6}
    if split == "test":
        assert all(1 + i % 8 in depths for i, depths in enumerate(asked))  # its own question is among them


def test_questions_are_spread_over_depths() -> None:
    batch = SEVERAL.batch("train", 0, 0, range(60))
    depths = Counter(batch.depth[batch.loss_mask].tolist())
    assert set(depths) == set(SEVERAL.depths())
    assert max(depths.values()) < 0.4 * depths.total()


def test_one_level_has_shorter_questions() -> None:
    medium = task(**{**MANY, "levels": ("medium",)})
    assert [section.length for section in medium.sections()] == [190 - 6 * 6, 6 * 6]
    assert [section.length for section in SEVERAL.sections()] == [190 - 6 * 8, 6 * 8]
    assert all(check_many(medium, row) for row in rows(medium, "train", 20))


# Depth


@both_tasks
@pytest.mark.parametrize("max_depth", [1, 3, 20])
def test_training_asks_no_deeper_questions_than_told(gsm: GsmInfinite, max_depth: int) -> None:
    train = gsm.batch("train", 0, 0, range(60), max_depth)
    assert set(train.depth[train.loss_mask].tolist()) == set(range(1, min(max_depth, 8) + 1))
    assert train.loss_mask.any(1).all()
    for limited, free in zip(
        gsm.batch("test", 0, 0, range(16), max_depth), gsm.batch("test", 0, 0, range(16)), strict=True
    ):
        assert torch.equal(limited, free)


def test_a_limit_of_depth_does_not_change_the_texts() -> None:
    context = slice(SEVERAL.sections()[0].length)
    shallow, deep = (SEVERAL.batch("train", 0, 0, range(20), max_depth) for max_depth in (2, None))
    assert torch.equal(shallow.tokens[:, context], deep.tokens[:, context])


@both_tasks
def test_operations_take_turns_in_tests_and_are_uniform_in_training(gsm: GsmInfinite) -> None:
    deepest = gsm.batch("test", 0, 0, range(24)).depth.amax(1).tolist()
    assert all(depth >= 1 + i % 8 for i, depth in enumerate(deepest))
    drawn = Counter(gsm._operations("train", 0, 0, range(4000), 8))
    assert all(drawn[n] / 4000 == pytest.approx(1 / 8, abs=0.02) for n in range(1, 9))


def test_the_shallowest_depth_remains() -> None:
    gsm = task(**{**WORDS, "min_operations": 3, "max_operations": 5})
    assert gsm.depths() == range(3, 6)
    assert set(gsm._operations("train", 0, 0, range(50), 3)) == {3}
    assert gsm._operations("test", 0, 0, range(5), 5) == [3, 4, 5, 3, 4]


# Batches


def assert_equal(a: Batch, b: Batch) -> None:
    assert all(map(torch.equal, a, b))


@both_splits
@both_tasks
def test_it_makes_no_difference_how_a_batch_is_cut(gsm: GsmInfinite, split: Split) -> None:
    whole = gsm.batch(split, 5, 3, range(12))
    fresh = GsmInfinite.model_validate(gsm.model_dump())
    pieces = [fresh.batch(split, 5, 3, range(first, first + 4)) for first in (8, 0, 4)]
    order = [pieces[1], pieces[2], pieces[0]]
    assert_equal(whole, Batch(*map(torch.cat, zip(*order, strict=True))))
    assert_equal(fresh.batch(split, 5, 3, range(1, 12, 4)), Batch(*(x[1::4] for x in whole)))
    assert fresh.batch(split, 5, 3, range(0)).tokens.shape == (0, gsm.sequence_length)


@both_tasks
def test_seed_step_and_split_each_make_other_data(gsm: GsmInfinite) -> None:
    keys: list[tuple[Split, int, int]] = [("train", 0, 0), ("train", 1, 0), ("train", 0, 1), ("test", 0, 0)]
    batches = [gsm.batch(*key, range(4)).tokens for key in keys]
    assert not any(torch.equal(a, b) for a, b in combinations(batches, 2))


def test_changing_a_batch_does_not_change_cached_test_examples() -> None:
    first = SMALL.batch("test", 0, 0, range(4))
    copy = Batch(*(x.clone() for x in first))
    for x in first:
        x.zero_()
    assert_equal(SMALL.batch("test", 0, 0, range(4)), copy)


# Chance


def constant_guesses(gsm: GsmInfinite, number: int) -> dict[int, float]:
    """How often the best constant answer is right in a batch."""
    answers: dict[int, Counter[tuple[int, ...]]] = {depth: Counter() for depth in gsm.depths()}
    for _, targets, mask, depth, question in rows(gsm, "train", number):
        for index in range(max(question) + 1):
            scored = [t for t, found in enumerate(question) if found == index and mask[t]]
            answers[depth[scored[0]]][tuple(targets[t] for t in scored)] += 1
    return {depth: found.most_common(1)[0][1] / found.total() for depth, found in answers.items()}


@pytest.mark.parametrize(
    "gsm", [task(**{**WORDS, "length": (1, 400), "max_operations": 2}), SMALL], ids=["one", "several"]
)
def test_chance_is_the_best_constant_answer(gsm: GsmInfinite) -> None:
    chance = gsm.chance()
    assert list(chance) == list(gsm.depths())
    assert chance == pytest.approx(constant_guesses(gsm, 250), abs=0.07)
    mean = sum(p**gsm.num_questions for p in chance.values()) / len(chance)
    if gsm.num_questions == 1:
        assert gsm.chance_exact() == pytest.approx(mean)
    else:  # some texts have fewer questions
        assert mean < gsm.chance_exact() < max(chance.values()) ** 2


def test_chance_needs_no_tokenizer_and_is_the_same_for_all() -> None:
    few = {"max_operations": 1, "length": (500, 600)}
    assert task(**few).chance() == task(**few, tokenizer="words", instruction=False, question_position="last").chance()


# Settings


def test_what_others_ask_of_a_task() -> None:
    for gsm in (ONE, SEVERAL):
        assert len(gsm.token_names()) == gsm.vocab_size
        assert sum(section.length for section in gsm.sections()) == gsm.sequence_length
        assert gsm.batch("train", 0, 0, range(2)).tokens.shape == (2, gsm.sequence_length)
    assert (ONE.answer_is_last, SEVERAL.answer_is_last) == (True, False)


def test_settings_survive_json_and_are_equal_whatever_was_computed() -> None:
    fresh = GsmInfinite.model_validate(SMALL.model_dump(mode="json"))
    SMALL.chance()
    assert fresh == SMALL
    assert fresh.model_dump() == SMALL.model_dump()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"length is missing: a model needs the shortest and the longest prompt, such as \[2000, 3300\]"),
        ({"length": (9, 8)}, "must be \\[shortest, longest\\]"),
        ({"length": (9, 90), "tokenizer": "words"}, 'instruction must be false with tokenizer "words"'),
        ({"length": (9, 90), "tokenizer": "letters"}, "tokenizer"),
        ({**MANY, "num_questions": 0}, "num_questions"),
        ({**MANY, "question_position": "first"}, 'num_questions 6 needs question_position = "last", else it must be 1'),
        ({**MANY, "modes": ("forward", "reverse")}, r'num_questions 6 needs modes = \["forward"\], else'),
        ({**MANY, "max_value": 10}, "num_questions 6 needs max_value = 9, else"),
        ({**MANY, "min_operations": 2}, "num_questions 6 needs min_operations = 1, else"),
        (
            {"length": (9, 90), "num_questions": 2, "modes": ("forward",), "max_value": 9},
            'num_questions 2 needs question_position = "last" and tokenizer = "words", else it must be 1',
        ),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GsmInfinite.model_validate(settings)
