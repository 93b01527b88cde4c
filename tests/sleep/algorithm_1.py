"""Algorithm 1 written out, block by block and row by row, and the small texts that the tests of sleep share.

`algorithm_1` calls neither `wake` nor `sleep` nor `rollout`: it is what they are measured against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from reverie.model import CacheEntry, ConvTail, HybridLM, KVCache, State, select_rows
from reverie.model.rotary import shift
from reverie.sleep import SleepConfig, rollout
from reverie.sleep.labels import labelled_windows

MakeModel = Callable[..., HybridLM]

L, T = 5, 17  # three full windows and one of two tokens
LAYERS = {"gdn": ("attn", "gdn", "attn", "gdn", "attn"), "jet": ("attn", "jet", "jet", "attn", "jet")}
LOOPS = {"all": None, "start": (0, 2), "middle": (1, 3), "end": (3, 5), "last": (4, 5)}

each_kind = pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
each_eviction = pytest.mark.parametrize("eviction", ["hard", "sliding"])
each_loop = pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
some_passes = pytest.mark.parametrize("N", [1, 3])


def asleep(N: int, eviction: str = "hard", loop: tuple[int, int] | None = None, window_size: int = L) -> SleepConfig:
    return SleepConfig.model_validate(
        {"window_size": window_size, "num_sleep_passes": N, "looped_blocks": loop, "eviction": eviction}
    )


def text(length: int = T, rows: int = 2) -> Tensor:
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(0))


def labels(*windows: int, length: int = T) -> Tensor:
    """Labels of both rows in these windows, at places that differ from row to row."""
    random, mask = torch.Generator().manual_seed(1), torch.zeros(2, length, dtype=torch.bool)
    for window in windows:
        place = slice(window * L, (window + 1) * L)
        mask[:, place] = torch.rand(mask[:, place].shape, generator=random) < 0.6
        mask[:, window * L] = True
    return mask


def one_block(
    model: HybridLM,
    i: int,
    h: Tensor,
    S: Tensor | None,
    cache: CacheEntry | None,
    embedded: Tensor,
    bidirectional: bool = False,
) -> tuple[Tensor, Tensor | None, CacheEntry | None]:
    slots = [None] * model.num_blocks
    fast_weights, caches = [*slots[:i], S, *slots[i + 1 :]], [*slots[:i], cache, *slots[i + 1 :]]
    more: Any = {"embedded": embedded} if model.config.value_embedding else {}
    more |= {"bidirectional": True} if bidirectional else {}
    h, state = model.blocks(h, State(tuple(fast_weights), tuple(caches)), i, i + 1, span=L, **more)
    return h, state.fast_weights[i], state.cache[i]


def algorithm_1(
    model: HybridLM, tokens: Tensor, config: SleepConfig, sleeps: Sequence[bool]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The logits of every token, and the fast weights at the end; all rows sleep over window i where sleeps[i]."""
    n = model.num_blocks
    a, b = config.looped_blocks or (0, n)
    S, kept, logits = [None] * n, [None] * n, []
    for window, sleeps_here in zip(tokens.split(L, 1), sleeps, strict=True):
        h = embedded = model.embed(window)  # awake: one pass, nothing of it stays
        for i in range(n):
            h, _, _ = one_block(model, i, h, S[i], kept[i], embedded)
        logits.append(model.head(h))

        h, new_S, cache = model.embed(window), list[Any](S), list[Any](kept)
        for i in range(a):
            h, new_S[i], cache[i] = one_block(model, i, h, S[i], kept[i], embedded)
        entered, passes = h, config.num_sleep_passes if sleeps_here else 1
        for k in range(1, passes + 1):
            h = model.inject(k, h, entered) if k > 1 else h
            for i in range(a, b):
                both_ways = config.bidirectional_sleep and k > 1
                h, new_S[i], cache[i] = one_block(model, i, h, new_S[i], kept[i], embedded, both_ways)
        for i in range(b, n):
            both_ways = config.bidirectional_sleep and passes > 1
            h, new_S[i], cache[i] = one_block(model, i, h, S[i], kept[i], embedded, both_ways)
        S, kept = new_S, [newest(entry) if config.eviction == "sliding" else None for entry in cache]
    return torch.cat(logits, 1), tuple(S)


def newest(entry: KVCache | ConvTail) -> KVCache | ConvTail:
    """The L − 1 newest tokens, from position 0 on."""
    if isinstance(entry, ConvTail):
        return entry
    gone = max(0, entry.k.shape[1] - (L - 1))
    return KVCache(shift(entry.k, -gone, entry.rope_base)[:, gone:], entry.v[:, gone:], entry.rope_base)


def assert_same(got: Any, wanted: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def tensors(x: Any) -> list[Tensor]:
    """All tensors in a Context or State."""
    if isinstance(x, Tensor):
        return [x]
    return [tensor for part in x for tensor in tensors(part)] if isinstance(x, tuple) else []


def gradients_of_rows(model: HybridLM, config: SleepConfig) -> dict[str, Tensor]:
    """Of a rollout whose rows sleep over different windows, by parameter; after checking that its logits, fast weights
    and gradients are those of each row by itself."""
    tokens, mask = text(), labels(3)
    mask[1, L] = True
    logits, context = rollout(model, tokens, mask, config)
    sleeps = ~labelled_windows(mask, L)
    alone = [algorithm_1(model, tokens[i : i + 1], config, sleeps[i].tolist()) for i in range(2)]
    wanted = torch.cat([own[mask[i : i + 1]] for i, (own, _) in enumerate(alone)])
    assert_same(logits, wanted)
    for i, (_, S) in enumerate(alone):
        assert_same(select_rows(context.state.fast_weights, torch.tensor([i])), S)
    parameters = dict(model.named_parameters())
    ours, theirs = (torch.autograd.grad(x.square().sum(), list(parameters.values())) for x in (logits, wanted))
    assert_same(ours, theirs)
    return dict(zip(parameters, ours, strict=True))
