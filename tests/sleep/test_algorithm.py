"""Sleep, awake and asleep, against Algorithm 1 written out.

Small models in float64, so that "the same up to rounding" can mean 1e-9.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from algorithm_1 import (
    LAYERS,
    LOOPS,
    L,
    MakeModel,
    T,
    algorithm_1,
    asleep,
    assert_same,
    each_eviction,
    each_kind,
    each_loop,
    labels,
    some_passes,
    tensors,
    text,
)

from reverie.errors import UserError
from reverie.model import State
from reverie.sleep import Context, forget, plan, read, rollout, sleep, wake


@each_kind
@each_eviction
@each_loop
@some_passes
def test_rollout_is_algorithm_1(
    tiny_model: MakeModel, layers: Sequence[str], eviction: str, loop: tuple[int, int] | None, N: int
) -> None:
    """Sleep over windows without labels, the ragged last one too; one pass over those with labels."""
    model, tokens, config = tiny_model(*layers), text(), asleep(N, eviction, loop)
    for labelled in [(1, 3), (2,)]:
        mask = labels(*labelled)
        wanted, S = algorithm_1(model, tokens, config, [i not in labelled for i in range(4)])
        logits, context = rollout(model, tokens, mask, config)
        assert_same(logits, wanted[mask])
        assert_same(context.state.fast_weights, S)


@each_eviction
@each_loop
@some_passes
def test_read_is_algorithm_1(tiny_model: MakeModel, eviction: str, loop: tuple[int, int] | None, N: int) -> None:
    """Every token is predicted awake, every full window is slept over."""
    model, tokens, config = tiny_model("attn", "gdn", "jet", "attn", "gdn"), text(), asleep(N, eviction, loop)
    wanted, S = algorithm_1(model, tokens, config, [True, True, True, False])
    logits, context = read(model, tokens, Context.empty(model), config)
    assert_same(logits, wanted)
    assert_same(context.state.fast_weights, S)


@each_kind
@each_loop
def test_one_pass_is_the_plain_hybrid_bit_for_bit(
    tiny_model: MakeModel, layers: Sequence[str], loop: tuple[int, int] | None
) -> None:
    """Hard eviction: window by window, and fast weights go on."""
    model, tokens, mask = tiny_model(*layers, dtype=torch.float32), text(), labels(1, 3)
    state, hs = State.empty(model.num_blocks), []
    for window in tokens.split(L, 1):
        h, state = model.blocks(model.embed(window), State(state.fast_weights, (None,) * 5), 0, 5, span=L)
        hs.append(h)
    logits, context = read(model, tokens, Context.empty(model), asleep(1, loop=loop))
    assert torch.equal(logits, torch.cat([model.head(h) for h in hs], 1))
    scored, end = rollout(model, tokens, mask, asleep(1, loop=loop))
    assert torch.equal(scored, model.head(torch.cat(hs, 1)[mask]))
    for fast_weights in (context.state.fast_weights, end.state.fast_weights):
        assert all(map(torch.equal, tensors(fast_weights), tensors(state.fast_weights)))


@each_kind
@pytest.mark.parametrize("window_size", [1, 2, 5, 30])
def test_one_sliding_pass_is_one_forward_pass_with_a_band_mask(
    tiny_model: MakeModel, layers: Sequence[str], window_size: int
) -> None:
    model, tokens = tiny_model(*layers), text()
    h, state = model.blocks(model.embed(tokens), State.empty(5), 0, 5, span=window_size)
    logits, context = read(model, tokens, Context.empty(model), asleep(1, "sliding", window_size=window_size))
    assert_same(logits, model.head(h))
    assert_same(context.state.fast_weights, state.fast_weights)


@each_eviction
def test_sleep_of_one_pass_only_evicts(tiny_model: MakeModel, eviction: str) -> None:
    model = tiny_model(*LAYERS["gdn"])
    _, full = wake(model, text(L), Context.empty(model), asleep(1, eviction))
    slept, forgotten = sleep(model, full, asleep(1, eviction)), forget(full, asleep(1, eviction))
    assert_same(tensors(slept), tensors(forgotten), 0)


@each_eviction
@each_loop
def test_passes_matter(tiny_model: MakeModel, eviction: str, loop: tuple[int, int] | None) -> None:
    """Each number of passes leaves other fast weights in the looped blocks, and so other logits later."""
    model = tiny_model(*LAYERS["gdn"])
    seen = [rollout(model, text(), labels(3), asleep(N, eviction, loop))[0] for N in (1, 2, 3)]
    nothing_left = eviction == "hard" and loop == LOOPS["last"]  # the loop is attention alone, and evicted
    for x, y in [(0, 1), (1, 2), (0, 2)]:
        assert torch.allclose(seen[x], seen[y], atol=1e-4) == nothing_left


@some_passes
def test_a_transformer_forgets_all_under_hard_eviction(tiny_model: MakeModel, N: int) -> None:
    """Each window is read as if it were the first, whatever N."""
    model, tokens = tiny_model("attn", "attn"), text()
    logits, _ = read(model, tokens, Context.empty(model), asleep(N))
    assert_same(logits, torch.cat([model(window) for window in tokens.split(L, 1)], 1))


# Errors


def test_tokens_must_fit_the_window(tiny_model: MakeModel) -> None:
    model = tiny_model("attn", "gdn")
    _, context = wake(model, text(3), Context.empty(model), asleep(1))
    with pytest.raises(UserError, match="3 tokens do not fit after 3 in a window of 5"):
        wake(model, text(3), context, asleep(1))


def test_the_loop_must_lie_in_the_model(tiny_model: MakeModel) -> None:
    model = tiny_model("attn", "gdn")
    assert plan(model, asleep(2, loop=(0, 2))).b == 2
    with pytest.raises(UserError, match=r"looped_blocks \[1, 3\] must end at or before 2"):
        read(model, text(), Context.empty(model), asleep(2, loop=(1, 3)))


def test_there_must_be_a_label(tiny_model: MakeModel) -> None:
    with pytest.raises(UserError, match="no position is labelled"):
        rollout(tiny_model("attn", "gdn"), text(), torch.zeros(2, T, dtype=torch.bool), asleep(1))


def test_there_must_be_a_token_to_read(tiny_model: MakeModel) -> None:
    model = tiny_model("attn", "gdn")
    with pytest.raises(UserError, match="nothing to read"):
        read(model, text(0), Context.empty(model), asleep(1))
