"""Answers from a memory: what the model would say alone, whatever else is asked, and the memory stays as it is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_sleeper import FACTS, QUESTION, tiny_sleeper

from reverie.errors import UserError
from reverie.memory.memory import Memory, sleep_over
from reverie.model import State
from reverie.sleep import read
from reverie.talk.answer import against_empty, ask, examine
from reverie.talk.answer_tables import times
from reverie.talk.sleeper import Sleeper
from reverie.tasks.language import TokenNames

QUESTIONS = [
    QUESTION,
    "What is the total number of grown animals in Gull Island?",  # of other lengths
    "How many grown hare does Gull Island have?",
    "How many",
]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def sleeper(tmp_path: Path) -> Sleeper:
    return tiny_sleeper(tmp_path)


def memory_of(sleeper: Sleeper, text: str = FACTS) -> Memory:
    return sleep_over(sleeper, [sleeper.text(text)])


def test_each_question_is_answered_as_if_alone(sleeper: Sleeper) -> None:
    """By what the model says behind memory and question; the memory is not touched."""
    memory = memory_of(sleeper)
    before = [x.clone() for x in memory.context.state.fast_weights if x is not None]
    answers = ask(sleeper, memory, QUESTIONS)
    assert [answer.question for answer in answers] == QUESTIONS
    for answer in answers:
        question = torch.tensor([sleeper.question(answer.question)])
        logits, _ = read(sleeper.sleeping, question, memory.context, sleeper.sleep_config)
        shares = logits[0, -1].softmax(-1)
        assert answer.ids == (int(shares.argmax()),)
        assert answer.text == sleeper.decode(answer.ids)
        assert answer.probability == pytest.approx(float(shares.max()))
    after = [x for x in memory.context.state.fast_weights if x is not None]
    assert before
    assert all(map(torch.equal, before, after))


def test_answers_depend_on_the_memory(sleeper: Sleeper) -> None:
    """Else the test above would see nothing."""
    known = [answer.probabilities for answer in ask(sleeper, memory_of(sleeper), QUESTIONS)]
    assert known != [answer.probabilities for answer in ask(sleeper, Memory.empty(sleeper), QUESTIONS)]
    assert known != [answer.probabilities for answer in ask(sleeper, memory_of(sleeper, FACTS[:50]), QUESTIONS)]


def test_long_answers_end_where_they_end(tmp_path: Path) -> None:
    """Rows of a batch that have ended wait for the others; all is what greedy decoding says."""
    sleeper = tiny_sleeper(tmp_path, "depo")
    memory = sleep_over(sleeper, [sleeper.text("3 4 4 5 5 3")])
    assert memory.tokens.tolist() == [8]
    language = sleeper.language
    assert isinstance(language, TokenNames)
    language.max_answer_tokens, language.end_ids = 6, frozenset(range(1, 5))
    questions = [f"k={k} {x}" for k in (1, 2, 3) for x in range(9)]
    answers = ask(sleeper, memory, questions)
    lengths = set()
    for answer in answers:
        ids, context = list[int](), memory.context
        tokens = torch.tensor([sleeper.question(answer.question)])
        while len(ids) < 6 and not set(ids) & language.end_ids:
            logits, context = read(sleeper.sleeping, tokens, context, sleeper.sleep_config)
            ids.append(int(logits[0, -1].argmax()))
            tokens = torch.tensor([ids[-1:]])
        assert answer.ids == tuple(ids)
        lengths.add(len(ids))
    assert len(lengths) > 1
    assert len(ask(sleeper, memory, questions[:1], max_tokens=3)[0].ids) <= 3


def test_a_chat_that_was_saved_awake_is_asked_behind_its_words(sleeper: Sleeper) -> None:
    memory, awake = memory_of(sleeper), sleeper.encode("The number of grown hare in Gull Island equals 7.")
    said = replace(memory, notes={"awake": json.dumps(awake)})
    _, context = read(sleeper.sleeping, torch.tensor([awake]), memory.context, sleeper.sleep_config)
    logits, _ = read(sleeper.sleeping, torch.tensor([sleeper.question(QUESTION)]), context, sleeper.sleep_config)
    assert ask(sleeper, said, [QUESTION])[0].probability == pytest.approx(float(logits[0, -1].softmax(-1).max()))
    for note in ("7", '["x"]', "[-1]", "[true]", "{", "[" * 10**5, str([1] * 9), f"[{2**64}]"):
        with pytest.raises(UserError, match='the note "awake" of the memory must be a list of token ids'):
            ask(sleeper, replace(memory, notes={"awake": note}), [QUESTION])
    with pytest.raises(UserError, match="holds tokens that this model does not know"):
        ask(sleeper, replace(memory, notes={"awake": "[999]"}), [QUESTION])


def test_examined(sleeper: Sleeper) -> None:
    answers = ask(sleeper, memory_of(sleeper), QUESTIONS[:2])
    right = [(QUESTIONS[0], answers[0].text), (QUESTIONS[1], "no number")]
    done = examine(sleeper, FACTS, right)
    assert done.accuracy == 0.5
    assert done.summary()["accuracy"] == 0.5
    assert [row["right"] for row in done.summary()["answers"]] == [answers[0].text, "no number"]
    assert [row.answer for row in done.compared] == answers
    assert [row.empty for row in done.compared] == ask(sleeper, Memory.empty(sleeper), QUESTIONS[:2])


@pytest.mark.parametrize("awake", ["", "4 5 5 3"])
def test_against_an_empty_memory(tmp_path: Path, awake: str) -> None:
    """By one forward over question and answer: from the memory, after what a chat had heard, and from nothing."""
    sleeper = tiny_sleeper(tmp_path, "depo", window_size=32)
    sleeper.language.max_answer_tokens, sleeper.language.end_ids = 4, frozenset()
    model, heard = sleeper.sleeping, sleeper.encode(awake)
    memory = replace(sleep_over(sleeper, [sleeper.text("3 4 4 5 5 3")]), notes={"awake": json.dumps(heard)})
    rows = against_empty(sleeper, memory, ["k=1 3", "k=2 4"])
    assert [row.answer for row in rows] == ask(sleeper, memory, ["k=1 3", "k=2 4"])
    assert [row.empty for row in rows] == ask(sleeper, Memory.empty(sleeper), ["k=1 3", "k=2 4"])
    for row in rows:
        found = []
        for ids, state in ((heard, memory.context.state), ([], State.empty(model.num_blocks))):
            tokens = torch.tensor([ids + sleeper.question(row.answer.question) + list(row.answer.ids)])
            h, _ = model.blocks(model.embed(tokens), state, 0, model.num_blocks, span=32)
            shares = model.head(h)[0, -5:-1].softmax(-1)
            found.append(sum(float(share[i].log()) for share, i in zip(shares, row.answer.ids, strict=True)))
        assert [row.log_probability, row.empty_log_probability] == pytest.approx(found, rel=1e-4)
        assert row.gain == pytest.approx(found[0] - found[1], rel=1e-3)
        assert abs(row.gain) > 1e-2  # else this would see nothing
        assert math.exp(row.log_probability) == pytest.approx(math.prod(row.answer.probabilities), rel=1e-4)


def test_how_much_likelier() -> None:
    shown = {
        120: "× 120",
        1.5: "× 1.5",
        1: "× 1",
        0.034: "× 0.034",
        54321: "× 54,321",
        1e9: "× 10^9",
        1e-40: "× 10^-40",
    }
    assert {factor: times(math.log(factor)) for factor in shown} == shown
    assert times(1e4) == "× 10^4343"


def test_a_space_before_an_answer_is_no_part_of_it(sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ask(sleeper, memory_of(sleeper), [QUESTION])
    decode = sleeper.language.decode
    monkeypatch.setattr(sleeper.language, "decode", lambda ids: f" {decode(ids)}")
    assert ask(sleeper, memory_of(sleeper), [QUESTION]) == plain


def test_one_text_at_a_time(sleeper: Sleeper) -> None:
    with pytest.raises(UserError, match="the memory holds 2 texts: ask one of them"):
        ask(sleeper, memory_of(sleeper).branch(2), [QUESTION])
    with pytest.raises(UserError, match="there is nothing to answer"):
        ask(sleeper, memory_of(sleeper), [""])
