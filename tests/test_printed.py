"""What is printed of a memory, a state and a card is one line that says how much it holds, and never its numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_benchmark import benchmark_card
from tiny_sleeper import tiny_sleeper

from reverie.memory.memory import Memory, sleep_over
from reverie.model import State
from reverie.results.card import Part, load_card, read_card
from reverie.results.passes.card import PassesCard
from reverie.sleep import Context, read
from reverie.talk.sleeper import Sleeper

RESULTS = Path(__file__).parent.parent / "results"
MOST = 140


@pytest.fixture(scope="module")
def sleeper(tmp_path_factory: pytest.TempPathFactory) -> Sleeper:
    return tiny_sleeper(tmp_path_factory.mktemp("run"), "depo")


def line_of(thing: object) -> str:
    assert str(thing) == repr(thing)
    assert "\n" not in str(thing)
    assert len(str(thing)) < MOST
    assert "tensor(" not in str(thing)
    return str(thing)


def test_memories(sleeper: Sleeper) -> None:
    """The words that stand for it, of one text and of many, equal and not."""
    one = sleep_over(sleeper, torch.ones(1, 16, dtype=torch.long))
    assert line_of(one) == "Memory(1 text, 16 tokens, 4 passes, 512 bytes, of tiny depo)"
    assert line_of(one.branch(2)) == "Memory(2 texts, 16+16 tokens, 4 passes each, 1.0 kB, of tiny depo)"
    uneven = sleep_over(sleeper, [torch.ones(n, dtype=torch.long) for n in (5, 24)])
    assert "2 texts, 5+24 tokens, 2+6 passes, 1.0 kB" in line_of(uneven)
    assert "1,000 texts, 16,000 tokens, 4 passes each, 512.0 kB" in line_of(one.branch(1000))
    assert "1 text, 0 tokens, 0 passes, 0 bytes" in line_of(Memory.empty(sleeper))
    assert f"of {one.fingerprint[:8]})" in line_of(replace(one, notes={}))
    assert "of \ufffd[2J" in line_of(replace(one, notes={"model": "\x1b[2J" + "x" * 500}))


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
def test_states_and_contexts(tmp_path: Path, eviction: str) -> None:
    sleeper = tiny_sleeper(tmp_path, "depo", eviction=eviction)
    memory = sleep_over(sleeper, torch.ones(3, 16, dtype=torch.long))
    blocks = len(sleeper.fast_weight_blocks)
    where = f"fast weights in {blocks} of {sleeper.num_blocks} blocks, cache in"
    state = line_of(memory.context.state)
    assert state.startswith(f"State(3 texts, {where} {0 if eviction == 'hard' else sleeper.num_blocks}, ")
    assert ("1.5 kB" in state) == (eviction == "hard")
    assert "State(empty, fast weights in 0 of 7 blocks, cache in 0, 0 bytes)" in line_of(State.empty(7))
    _, context = read(sleeper, torch.ones(3, 5, dtype=torch.long), memory.context, memory.config)
    assert line_of(context).startswith("Context(5 tokens awake, 4 passes each, State(3 texts, ")
    assert line_of(Context.empty(sleeper)).startswith("Context(0 tokens awake, 0 passes, State(empty, ")


CARDS = [
    *(load_card(RESULTS / name) for name in ("depo/nano.json", "depo/nano-n16.json", "rule110/nano-ladder.json")),
    read_card(RESULTS / "depo" / "any-n.json", {"passes": PassesCard}),
    benchmark_card(),
]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: type(card).__name__)
def test_cards(card: Part) -> None:
    """And their parts, of which lists are made in a session."""
    assert line_of(card).startswith(f"{type(card).__name__}(name=")
    if results := getattr(card, "results", []):
        assert f", {len(results)} results" in line_of(card)
        assert all(len(line_of(result)) < MOST for result in results)
