"""The engine: each answer is what it would be alone, whatever is asked beside it, and sleep is over the words alone."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from typing import Any

import pytest
import torch
from answers import Asked, engine_of, new, same, weights
from tiny_sleeper import tiny_sleeper

from reverie.errors import UserError
from reverie.memory.memory import Memory, sleep_over
from reverie.serve.engine import Engine
from reverie.serve.job import Wrote
from reverie.serve.refusal import Refusal
from reverie.serve.sessions import Live
from reverie.sleep.generate import log_probability, write
from reverie.talk.chat import Chat
from reverie.talk.heard import Heard
from reverie.talk.sleeper import Sleeper
from reverie.tasks.language import TokenNames

TURNS = ["k=1 3", "k=2 4", "k=3 1", "k=2 2"]


@pytest.fixture(scope="module")
def sleeper(tmp_path_factory: pytest.TempPathFactory) -> Sleeper:
    """Windows of 8 tokens; answers of five tokens that nothing ends."""
    sleeper = tiny_sleeper(tmp_path_factory.mktemp("run"), "depo")
    assert isinstance(sleeper.language, TokenNames)
    sleeper.language.max_answer_tokens, sleeper.language.end_ids = 5, frozenset()
    return sleeper


def tokens(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(3, 9), k=count)


def test_a_chain_is_the_chat(sleeper: Sleeper) -> None:
    """Word for word and to the same bits, over several windows."""
    chat, live = Chat(sleeper, Memory.empty(sleeper)), new(sleeper)
    with engine_of(sleeper) as engine:
        for i, turn in enumerate(TURNS * 3, 1):
            end = Asked(engine, live, sleeper.question(turn), turns=i).end()
            assert end.text == chat.say(turn)
            assert same(end.heard, Heard(chat.memory, tuple(chat.awake), chat.turns))
            live = Live(end.heard, "")
        assert int(chat.memory.tokens[0]) > 60
        assert engine.counts.sleeps == int(chat.memory.tokens[0]) // 8


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 17, 40])
def test_what_is_only_heard_is_slept_over_window_by_window(sleeper: Sleeper, count: int) -> None:
    """The last window stays awake until the next token comes."""
    ids, memory = tokens(count), Memory.empty(sleeper)
    for window in torch.tensor(ids[: (count - 1) // 8 * 8]).split(8):
        if len(window):
            memory = sleep_over(sleeper, [window], memory=memory)
    with engine_of(sleeper) as engine:
        end = Asked(engine, new(sleeper), ids, max_tokens=0).end()
        assert same(end.heard, Heard(memory, tuple(ids[(count - 1) // 8 * 8 :]), 1))
        assert (end.text, end.tokens, end.reason) == ("", 0, "stop")
        cut = Asked(engine, new(sleeper), ids[:3], max_tokens=0).end()
        pieces = Asked(engine, Live(cut.heard, ""), ids[3:] or [3], max_tokens=0).end()
        assert count < 4 or same(pieces.heard, end.heard)


def test_many_at_once_are_what_each_is_alone(sleeper: Sleeper) -> None:
    """Different lengths, some at the same places; log probabilities to rounding, memories of the same words."""
    prompts = [tokens(length, seed) for seed, length in enumerate([3, 3, 3, 5, 11, 11, 20, 8])]
    with engine_of(sleeper, running=8) as engine:
        alone = [Asked(engine, new(sleeper), ids, max_tokens=16, logprobs=2) for ids in prompts]
        apart = [asked.logprobs() for asked in alone]
        batched = engine.counts.batched
        gate = threading.Event()
        engine.call(gate.wait)  # all of them are there when the first begins
        together = [Asked(engine, new(sleeper), ids, max_tokens=16, logprobs=2) for ids in prompts]
        gate.set()
        for ids, asked, before in zip(prompts, together, apart, strict=True):
            events = asked.all()
            logs = [shown.logprob for e in events if isinstance(e, Wrote) for shown in e.piece.tokens]
            said = [shown.token for e in events if isinstance(e, Wrote) for shown in e.piece.tokens]
            assert logs == pytest.approx(before, abs=1e-5)
            with torch.no_grad():
                expected = log_probability(
                    sleeper,
                    torch.tensor([ids]),
                    torch.tensor([said]),
                    Memory.empty(sleeper).context,
                    sleeper.sleep_config,
                )
            assert logs == pytest.approx(expected[0].tolist(), abs=1e-5)
        assert engine.counts.batched > batched


def test_several_answers_are_of_one_question(sleeper: Sleeper) -> None:
    ids = tokens(6)
    with engine_of(sleeper) as engine:
        ends = Asked(engine, new(sleeper), ids, n=4, max_tokens=12, temperature=1.5, seed=7).ends()
        assert [end.index for end in ends] == [0, 1, 2, 3]
        assert len({end.text for end in ends}) > 1
        again = Asked(engine, new(sleeper), ids, n=4, max_tokens=12, temperature=1.5, seed=7).ends()
        assert [end.text for end in again] == [end.text for end in ends]
        alone = Asked(engine, new(sleeper), ids, max_tokens=12, temperature=1.5, seed=7).end()
        assert alone.text == ends[0].text
        assert same(alone.heard, ends[0].heard)


def test_greedy_answers_are_those_of_write(sleeper: Sleeper) -> None:
    ids = tokens(6)
    with engine_of(sleeper) as engine:
        end = Asked(engine, new(sleeper), ids, max_tokens=20, temperature=0).end()
        written, _ = write(
            sleeper.sleeping, torch.tensor([ids]), Memory.empty(sleeper).context, sleeper.sleep_config, 20
        )
    assert list(end.said) == written[0].tolist()
    assert (end.tokens, end.reason) == (20, "length")


def test_a_session_stays_as_it_is(sleeper: Sleeper) -> None:
    """Going on is a branch: others from the same place give the same, also at the same time."""
    with engine_of(sleeper) as engine:
        live = Live(Asked(engine, new(sleeper), tokens(13)).end().heard, "")
        first = Asked(engine, live, [3, 4]).end()
        others = [Asked(engine, live, [4, i]) for i in (3, 4, 5)]
        assert len([asked.end() for asked in others]) == 3
        assert same(Asked(engine, live, [3, 4]).end().heard, first.heard)


@pytest.mark.parametrize("count", [3, 8, 13, 16])
def test_settled_behind_the_scenes_or_not_it_goes_on_alike(sleeper: Sleeper, count: int) -> None:
    """To the last bit, as after a restart: also where the window is full and sleep has come before the question."""
    with engine_of(sleeper) as engine:
        heard = Asked(engine, new(sleeper), tokens(count), max_tokens=0).end().heard
        restarted, settled = Live(heard, ""), Live(heard, "")
        engine.settle(settled)
        while settled.settled is None:
            time.sleep(0.01)
        assert len(settled.settled[0].awake) == count % 8
        sleeps = engine.counts.sleeps
        now = Asked(engine, settled, [3, 4], max_tokens=3, logprobs=1).logprobs()
        assert count % 8 or engine.counts.sleeps == sleeps  # it was done before
        assert now == Asked(engine, restarted, [3, 4], max_tokens=3, logprobs=1).logprobs()


def test_stop_words_are_neither_shown_nor_heard(sleeper: Sleeper) -> None:
    with engine_of(sleeper) as engine:
        drawn = {"max_tokens": 20, "temperature": 2.0, "seed": 1}
        whole = Asked(engine, new(sleeper), tokens(6), **drawn).end()
        words = whole.text.split()
        k = next(i for i in range(12, 3, -1) if not any(words[i] in word for word in words[:i]))
        asked = Asked(engine, new(sleeper), tokens(6), stop=("never", words[k]), **drawn)
        events = asked.all()
        shown = "".join(e.piece.text for e in events if isinstance(e, Wrote))
        end = events[-1]
        assert shown == end.text == whole.text[: whole.text.index(words[k])]  # type: ignore[union-attr]
        assert end.reason == "stop"  # type: ignore[union-attr]
        told = Asked(engine, new(sleeper), [*tokens(6), *sleeper.encode(shown)], max_tokens=0).end()
        assert same(end.heard, told.heard)  # type: ignore[union-attr]


def test_a_cancelled_job_frees_its_place(sleeper: Sleeper) -> None:
    with engine_of(sleeper, running=1, waiting=1) as engine:
        endless = Asked(engine, new(sleeper), [3], max_tokens=4000, logprobs=0)
        endless.events.get(timeout=60)
        behind = Asked(engine, new(sleeper), [3], max_tokens=1)
        with pytest.raises(Refusal) as refused:
            Asked(engine, new(sleeper), [3])
        assert refused.value.status == 429
        assert refused.value.retry_after_s is not None
        assert engine.num_running == engine.num_waiting == 1
        engine.cancel(endless.job)
        assert behind.end().tokens == 1
        assert engine.counts.tokens_written < 3000
        gone = Asked(engine, new(sleeper), [3], max_tokens=4000)
        gone.events.get(timeout=60)
        queued = Asked(engine, new(sleeper), [3], max_tokens=1)
        engine.cancel(queued.job)
        engine.cancel(gone.job)
        assert Asked(engine, new(sleeper), [3], max_tokens=1).end().tokens == 1
        assert queued.events.empty()


def test_an_error_ends_one_job_alone(sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_of(sleeper) as engine:
        other = Asked(engine, new(sleeper), [3], max_tokens=200)
        with pytest.raises(UserError, match="does not know"):
            Asked(engine, new(sleeper), [10**6]).end()
        assert other.end().tokens == 200
        assert engine.num_running == 0


@pytest.mark.parametrize("size", [3e38, 1e30])
def test_numbers_that_overflow_are_told(sleeper: Sleeper, size: float) -> None:
    """A file may hold finite numbers that no model can go on with; the engine goes on with others."""
    with engine_of(sleeper) as engine:
        heard = Asked(engine, new(sleeper), tokens(20), max_tokens=0).end().heard
        for x in weights(heard):
            x.fill_(size)
        for temperature in (0.0, 1.0):
            asked = Asked(engine, Live(heard), tokens(30), max_tokens=20, temperature=temperature)
            with contextlib.suppress(UserError):  # nothing else
                assert all(bool(x.isfinite().all()) for x in weights(asked.end().heard))
        Asked(engine, new(sleeper), tokens(20)).end()


def test_too_long_is_refused(sleeper: Sleeper) -> None:
    with engine_of(sleeper, answer_s=0.3) as engine:
        with pytest.raises(Refusal, match=r"longer than 0\.3 s"):
            Asked(engine, new(sleeper), [3], max_tokens=4000).end()
        assert Asked(engine, new(sleeper), [3], max_tokens=1).end().tokens == 1


def test_those_who_wait_are_told_of_the_end(sleeper: Sleeper) -> None:
    with engine_of(sleeper, running=1) as engine:
        asked = [Asked(engine, new(sleeper), [3], max_tokens=4000) for _ in range(2)]
    for one in asked:
        with pytest.raises(Refusal, match="about to end"):
            one.end()
    with pytest.raises(Refusal, match="about to end"):
        Asked(engine, new(sleeper), [3])


class Counting:
    """Something in the background."""

    def __init__(self, steps: int) -> None:
        self.left, self.stopped, self.done = steps, False, threading.Event()

    def step(self) -> bool:
        self.left -= 1
        if self.left == 0:
            self.done.set()
        return self.left == 0

    def stop(self) -> None:
        self.stopped = True


def test_the_background_gets_turns(sleeper: Sleeper) -> None:
    with engine_of(sleeper) as engine:
        task, endless = Counting(50), Counting(-1)
        engine.background(task)
        engine.background(endless)
        assert task.done.wait(60)
        assert endless.left < -20
    assert endless.stopped
    assert not task.stopped


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_any_schedule_gives_each_its_own(sleeper: Sleeper, seed: int) -> None:
    """Random lengths, arrivals, branches and cancellations: all who stay get what they would alone."""
    chance = random.Random(seed)

    def sampled(i: int) -> dict[str, Any]:
        return {"max_tokens": lengths[i], "temperature": 1.0, "seed": i, "logprobs": 0}

    lengths = [chance.randrange(0, 25) for _ in range(14)]
    prompts = [tokens(chance.randrange(1, 30), i) for i in range(14)]
    with engine_of(sleeper, running=5) as engine:
        alone = [Asked(engine, new(sleeper), prompts[i], **sampled(i)).end() for i in range(14)]
        asked = list[Asked]()
        for i in range(14):
            asked.append(Asked(engine, new(sleeper), prompts[i], **sampled(i)))
            if chance.random() < 0.3:
                engine.cancel(Asked(engine, new(sleeper), tokens(20), max_tokens=30).job)
            time.sleep(chance.random() * 0.02)
        for one, end in zip(asked, alone, strict=True):
            found = one.end()
            assert (found.text, found.heard.awake) == (end.text, end.heard.awake)
            torch.testing.assert_close(weights(found.heard), weights(end.heard))
        assert engine.num_running == engine.num_waiting == 0
        assert_empty(engine)


def assert_empty(engine: Engine) -> None:
    assert engine.call(lambda: len(engine._voices)).result() == 0


def test_sliding_eviction_goes_on_alike(tmp_path_factory: pytest.TempPathFactory) -> None:
    sleeper = tiny_sleeper(tmp_path_factory.mktemp("sliding"), "depo", eviction="sliding")
    chat, live = Chat(sleeper, Memory.empty(sleeper), max_tokens=5), new(sleeper)
    with engine_of(sleeper) as engine:
        for i, turn in enumerate(TURNS, 1):
            end = Asked(engine, live, sleeper.question(turn), turns=i, max_tokens=5).end()
            assert end.text == chat.say(turn)
            live = Live(Heard.of(end.heard.as_memory("")), "")
        assert same(live.heard, Heard(chat.memory, tuple(chat.awake), 4))
