"""Reading in pieces of any size is reading in one call, and a context is all that it goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from algorithm_1 import LAYERS, L, MakeModel, T, asleep, assert_same, each_eviction, each_kind, labels, tensors, text
from hypothesis import given, settings
from hypothesis import strategies as st

from reverie.sleep import Context, read, rollout


@settings(max_examples=3, deadline=None, database=None, derandomize=True)
@given(cuts=st.sets(st.integers(1, T - 1)), N=st.integers(1, 3))
@pytest.mark.parametrize("loop", [None, (1, 3)], ids=["all", "middle"])
@each_eviction
@each_kind
def test_pieces_of_any_size_are_one_call(
    tiny_model: MakeModel, layers: Sequence[str], eviction: str, loop: tuple[int, int] | None, cuts: set[int], N: int
) -> None:
    """The same logits and fast weights, and a context that knows where in the window it stands."""
    model, tokens, config = tiny_model(*layers), text(), asleep(N, eviction, loop)
    wanted, end = read(model, tokens, Context.empty(model), config)
    logits, context, position = [], Context.empty(model), 0
    edges = [0, *sorted(cuts), T]
    for start, stop in pairwise(edges):
        piece, context = read(model, tokens[:, start:stop], context, config)
        logits.append(piece)
        position += piece.shape[1]
        length = (position - 1) % L + 1  # a full window is kept until the next token comes
        assert context.length == length
        assert sum(h.shape[1] for h in context.window) == (length if N > 1 else 0)
    assert_same(torch.cat(logits, 1), wanted)
    assert_same(tensors(context.state), tensors(end.state))
    assert_same(tensors(context.window_start), tensors(end.window_start))


@each_eviction
@each_kind
def test_token_by_token_in_float32(tiny_model: MakeModel, layers: Sequence[str], eviction: str) -> None:
    model, tokens, config = tiny_model(*layers, dtype=torch.float32), text(), asleep(2, eviction)
    wanted, _ = read(model, tokens, Context.empty(model), config)
    logits, context = [], Context.empty(model)
    for token in tokens.split(1, 1):
        piece, context = read(model, token, context, config)
        logits.append(piece)
    assert (torch.cat(logits, 1) - wanted).norm() < 2e-3 * wanted.norm()


@each_kind
@each_eviction
@pytest.mark.parametrize("loop", [None, (1, 3)], ids=["all", "middle"])
@pytest.mark.parametrize("N", [1, 3])
def test_the_newest_logits_are_those_of_the_full_read(
    tiny_model: MakeModel, layers: Sequence[str], loop: tuple[int, int] | None, eviction: str, N: int
) -> None:
    """And so is the context, wherever in their windows the two pieces begin and end."""
    model, tokens, config = tiny_model(*layers), text(), asleep(N, eviction, loop)
    for cut in (3, 2 * L):
        whole, fast = Context.empty(model), Context.empty(model)
        for piece in tokens.split([cut, T - cut], 1):
            logits, whole = read(model, piece, whole, config)
            newest_logits, fast = read(model, piece, fast, config, newest_only=True)
            assert_same(newest_logits, logits[:, -1:])
        assert fast.length == whole.length
        assert_same(tensors(fast), tensors(whole))


def test_a_context_is_all_that_reading_goes_on_from(tiny_model: MakeModel) -> None:
    """Two continuations of one context do not disturb each other."""
    model, tokens, config = tiny_model(*LAYERS["gdn"]), text(), asleep(2, "sliding")
    _, context = read(model, tokens[:, :8], Context.empty(model), config)
    first, _ = read(model, tokens[:, 8:], context, config)
    read(model, tokens[:, :9], context, config)
    again, _ = read(model, tokens[:, 8:], context, config)
    assert torch.equal(again, first)


def test_logits_come_in_the_order_of_the_mask(tiny_model: MakeModel) -> None:
    """Rows first, then positions, though windows come one after the other."""
    model, tokens, mask = tiny_model(*LAYERS["gdn"]), text(), labels(0, 1, 2, 3)
    logits, _ = read(model, tokens, Context.empty(model), asleep(1))
    scored, _ = rollout(model, tokens, mask, asleep(1))
    assert_same(scored, logits[mask])
