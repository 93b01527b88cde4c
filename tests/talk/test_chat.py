"""A conversation: every token is heard, slept over once, and a saved one goes on to the same words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_sleeper import QUESTION, tiny_sleeper

from reverie.errors import UserError
from reverie.memory.memory import Memory, sleep_over
from reverie.talk.chat import MOST_UNDONE, Chat, Nap
from reverie.talk.draw import PROSE_TEMPERATURE
from reverie.talk.sleeper import Sleeper
from reverie.tasks.language import TokenNames

TURNS = ["k=1 3", "3 4 4 5", "k=2 4", "k=3 1", "5 3", "k=2 2"]


@pytest.fixture
def sleeper(tmp_path: Path) -> Sleeper:
    """Answers of five tokens that nothing ends."""
    sleeper = tiny_sleeper(tmp_path, "depo")
    assert isinstance(sleeper.language, TokenNames)
    sleeper.language.max_answer_tokens, sleeper.language.end_ids = 5, frozenset()
    return sleeper


def chat_with(sleeper: Sleeper, **kwargs: float) -> tuple[Chat, list[Nap]]:
    naps = list[Nap]()
    return Chat(sleeper, Memory.empty(sleeper), on_sleep=naps.append, **kwargs), naps  # type: ignore[arg-type]


def heard(sleeper: Sleeper, turns: list[str], answers: list[str]) -> list[int]:
    """All that was said, in order."""
    pairs = zip(turns, answers, strict=True)
    return [i for turn, answer in pairs for text in (turn, answer) for i in sleeper.encode(text)]


def weights(memory: Memory) -> list[torch.Tensor]:
    return [x for x in memory.context.state.fast_weights if x is not None]


def test_all_that_was_said_is_slept_over_once(sleeper: Sleeper) -> None:
    """Window by window as any text is, and not before a window is full and the next token comes."""
    chat, naps = chat_with(sleeper)
    answers = [chat.say(turn) for turn in TURNS]
    assert [len(answer.split()) for answer in answers] == [5, 0, 5, 5, 0, 5]  # facts are heard only
    said = heard(sleeper, TURNS, answers)
    assert len(said) == 34
    assert [(nap.tokens, nap.passes) for nap in naps] == [(8, 2)] * 4
    assert chat.awake == said[32:]
    text = sleep_over(sleeper, torch.tensor([said[:32]]))
    torch.testing.assert_close(weights(chat.memory), weights(text))
    assert int(chat.memory.tokens[0]) == 32
    assert chat.memory.history is not None
    assert chat.memory.history.num_windows == 4
    assert chat.sleep()
    assert not chat.sleep()
    torch.testing.assert_close(weights(chat.memory), weights(sleep_over(sleeper, torch.tensor([said]))))
    assert naps[-1].sentence().startswith("slept over 2 tokens, 2 passes, 0.")
    assert naps[-1].sentence().endswith("34 tokens in memory, 512 bytes")


def test_the_window_bounds_what_is_held(sleeper: Sleeper) -> None:
    chat, _ = chat_with(sleeper)
    for turn in TURNS * 4:
        chat.say(turn)
        assert len(chat.awake) == chat.context.length <= 8


@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_saved_and_loaded_it_goes_on_as_it_would_have(sleeper: Sleeper, tmp_path: Path, after: int) -> None:
    """Word for word, to the same fast weights; also drawn at a temperature from the same seed."""
    chat, _ = chat_with(sleeper)
    for turn in TURNS[:after]:
        chat.say(turn)
    chat.save(tmp_path / "chat.safetensors")
    again = Chat(sleeper, Memory.load(tmp_path / "chat.safetensors", sleeper))
    assert (again.awake, again.turns) == (chat.awake, chat.turns)
    assert "awake" not in again.memory.notes  # or what is slept over would be heard again by who goes on from this
    for turn in TURNS:
        assert again.say(turn) == chat.say(turn)
        assert again.awake == chat.awake
    assert all(map(torch.equal, weights(again.memory), weights(chat.memory)))
    assert all(map(torch.equal, *(one.context.state.fast_weights[1:] for one in (chat, again))))


def test_nothing_said_can_be_saved(sleeper: Sleeper, tmp_path: Path) -> None:
    chat, _ = chat_with(sleeper)
    chat.save(tmp_path / "chat.safetensors")
    chat.say("3 4")
    chat.load(tmp_path / "chat.safetensors")
    assert (chat.awake, chat.turns) == ([], 0)


def test_pieces_are_the_answer(tmp_path: Path, sleeper: Sleeper) -> None:
    chat, _ = chat_with(sleeper)
    pieces = list[str]()
    answer = chat.say(TURNS[0], pieces.append)
    assert "".join(pieces) == answer
    assert len([piece for piece in pieces if piece]) == 5


def test_an_end_that_is_no_word_is_not_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = tiny_sleeper(tmp_path, "word", window_size=99)
    [end] = sleeper.language.end_ids
    chosen = iter([*sleeper.encode("4 2"), end])
    monkeypatch.setattr(Chat, "_choose", lambda chat, logits, said: next(chosen))
    chat, _ = chat_with(sleeper)
    assert chat.say(QUESTION) == "42"
    assert chat.awake == [*sleeper.question(QUESTION), *sleeper.encode("42")]


def test_temperature(sleeper: Sleeper) -> None:
    def drawn(**kwargs: float) -> list[str]:
        chat, _ = chat_with(sleeper, **kwargs)
        return [chat.say(turn) for turn in TURNS]

    assert drawn(temperature=1.0, seed=1) == drawn(temperature=1.0, seed=1)
    assert drawn(temperature=1.0, seed=1) != drawn(temperature=1.0, seed=2)
    assert drawn(temperature=1e-3, seed=2) == drawn()
    assert {len(answer.split()) for answer in drawn(max_tokens=2)} == {0, 2}


def test_prose_is_drawn_if_nothing_else_is_said(sleeper: Sleeper) -> None:
    """At temperature 0 it is the likeliest, as a task's answers always are."""

    def answer(**kwargs: float) -> list[str]:
        return chat_with(sleeper, max_tokens=60, **kwargs)[0].say(TURNS[0]).split()

    likeliest = answer()
    assert likeliest == answer(temperature=0)
    drawn_by_logits = answer(temperature=1.0)
    sleeper.language.prose = True
    assert answer(temperature=0) == likeliest
    assert answer() == answer(temperature=PROSE_TEMPERATURE) != likeliest
    assert answer(temperature=1.0) != drawn_by_logits


def test_temperature_out_of_range(sleeper: Sleeper) -> None:
    for wrong in (1e-4, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="the temperature must be 0, for the most likely token, or from"):
            chat_with(sleeper, temperature=wrong)


def test_a_refused_load_leaves_the_chat_as_it_was(sleeper: Sleeper, tmp_path: Path) -> None:
    chat, _ = chat_with(sleeper)
    chat.say(TURNS[0])
    before = (chat.context, chat.awake, chat.turns, chat.memory)
    for notes in ({"turns": "x"}, {"awake": "x"}, {"awake": "[99999]"}):
        replace(Memory.empty(sleeper), notes=notes).save(tmp_path / "bad.safetensors")
        with pytest.raises(UserError, match='the note "'):
            chat.load(tmp_path / "bad.safetensors")
        assert all(x is y for x, y in zip(before, (chat.context, chat.awake, chat.turns, chat.memory), strict=True))


def test_passes_that_were_asked_for_outlive_a_load(sleeper: Sleeper, tmp_path: Path) -> None:
    """Without any, every memory goes on with its own."""
    made = sleeper.sleep_config.model_copy(update={"num_sleep_passes": 3, "tolerance": 0.5})
    Memory.empty(sleeper, made).save(tmp_path / "m.safetensors")
    for given, wanted in (({}, (3, 0.5)), ({"num_sleep_passes": 5, "tolerance": 0.1}, (5, 0.1))):
        chat, _ = chat_with(sleeper, **given)
        chat.load(tmp_path / "m.safetensors")
        assert (chat.memory.config.num_sleep_passes, chat.memory.config.tolerance) == wanted
    with pytest.raises(UserError, match="the tolerance must be a number above 0, such as"):
        chat_with(sleeper, tolerance=float("inf"))


def test_an_answer_that_is_stopped_counts_as_said(sleeper: Sleeper) -> None:
    chat, _ = chat_with(sleeper)
    written = list[str]()
    answer = chat.say(TURNS[0], written.append, lambda: len(written) >= 2)
    assert len(answer.split()) == 2
    assert chat.awake == heard(sleeper, TURNS[:1], [answer])
    assert chat.turns == 1


def test_what_it_does_not_understand_it_has_not_heard(sleeper: Sleeper) -> None:
    chat, _ = chat_with(sleeper)
    with pytest.raises(UserError, match="'what' is no token of this model's task"):
        chat.say("k=2 what")
    assert (chat.awake, chat.turns) == ([], 0)


def test_notes_that_no_chat_has_left(sleeper: Sleeper) -> None:
    for notes in ({"awake": "x"}, {"turns": "-1"}, {"turns": "9" * 5000}):
        with pytest.raises(UserError, match=f'the note "{next(iter(notes))}" of the memory must be'):
            Chat(sleeper, replace(Memory.empty(sleeper), notes=notes))
    with pytest.raises(UserError, match="the memory holds 2 texts"):
        Chat(sleeper, Memory.empty(sleeper).branch(2))


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_what_is_taken_back_was_never_said(sleeper: Sleeper, kept: int) -> None:
    """Turns and their answers, over sleeps and after one that was asked for: the same words come from there."""
    chat, _ = chat_with(sleeper)
    other, _ = chat_with(sleeper)
    for turn in TURNS:
        chat.say(turn)
    chat.sleep()
    assert [chat.undo() for _ in TURNS[kept:]] == TURNS[kept:][::-1]
    for turn in TURNS[:kept]:
        other.say(turn)
    for one in (chat, other):
        one.random.manual_seed(3)
    assert (chat.awake, chat.turns) == (other.awake, other.turns)
    assert [chat.say(turn) for turn in TURNS[::-1]] == [other.say(turn) for turn in TURNS[::-1]]
    for ours, theirs in zip(weights(chat.memory), weights(other.memory), strict=True):
        assert torch.equal(ours, theirs)


def test_taking_back_ends_where_the_chat_began_or_was_loaded(sleeper: Sleeper, tmp_path: Path) -> None:
    chat, _ = chat_with(sleeper)
    for i in range(MOST_UNDONE + 2):
        chat.say(TURNS[i % len(TURNS)])
    for _ in range(MOST_UNDONE):
        chat.undo()
    assert chat.turns == 2
    for _ in range(2):
        with pytest.raises(UserError, match="no turn to take back"):
            chat.undo()
    chat.say(TURNS[0])
    chat.save(tmp_path / "chat.safetensors")
    chat.undo()
    chat.say(TURNS[0])
    chat.load(tmp_path / "chat.safetensors")
    with pytest.raises(UserError, match="no turn to take back"):
        chat.undo()


def test_a_turn_that_was_refused_is_none_to_take_back(sleeper: Sleeper) -> None:
    chat, _ = chat_with(sleeper)
    chat.say(TURNS[0])
    with pytest.raises(UserError, match="no token"):
        chat.say("a unicorn")
    assert chat.undo() == TURNS[0]
