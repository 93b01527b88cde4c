"""What eviction drops and keeps."""

from __future__ import annotations

import pytest
import torch

from reverie.model import ConvTail, KVCache, State, evict
from reverie.model.rotary import rotate

BASE = 50.0


def state(T: int) -> tuple[State, torch.Tensor]:
    """An attention block with T tokens cached, and a fast-weight block; with the keys as they were before rotation."""
    k = torch.randn((2, T, 1, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cache = KVCache(rotate(k, 0, BASE), k + 1, BASE)
    return State((None, torch.ones(2, 1, 3, 3)), (cache, ConvTail(torch.ones(2, 3, 6)))), k


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
def test_fast_weights_stay(eviction: str) -> None:
    before, _ = state(6)
    assert evict(before, eviction, 4).fast_weights == before.fast_weights  # pyright: ignore[reportArgumentType]


def test_hard_eviction_keeps_nothing_else() -> None:
    before, _ = state(6)
    assert evict(before, "hard", 4).cache == (None, None)


@pytest.mark.parametrize("T", [1, 2, 3, 4, 6, 7])
def test_sliding_eviction_keeps_the_newest_from_position_zero_on(T: int) -> None:
    """L − 1 tokens, or all where there are fewer; the convolution's tail stays."""
    L = 4
    before, k = state(T)
    after = evict(before, "sliding", L)
    kept = after.cache[0]
    assert isinstance(kept, KVCache)
    newest = k[:, -(L - 1) :]
    torch.testing.assert_close(kept.k, rotate(newest, 0, BASE))
    torch.testing.assert_close(kept.v, newest + 1)
    torch.testing.assert_close(after.cache[1], before.cache[1])


def test_sliding_eviction_of_a_window_of_one_token_keeps_none() -> None:
    kept = evict(state(3)[0], "sliding", 1).cache[0]
    assert isinstance(kept, KVCache)
    assert kept.k.shape[1] == kept.v.shape[1] == 0


def test_splice() -> None:
    ours = State(tuple(torch.zeros(1) for _ in range(4)), (None,) * 4)
    tail = ConvTail(torch.ones(1, 3, 1))
    theirs = State(tuple(torch.ones(1) for _ in range(4)), (tail,) * 4)
    spliced = ours.splice(theirs, 1, 3)
    assert [None if x is None else x.item() for x in spliced.fast_weights] == [0, 1, 1, 0]
    assert spliced.cache == (None, tail, tail, None)
    assert ours.splice(theirs, 2, 2) == ours
