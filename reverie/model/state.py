"""What crosses a call, and what eviction drops and keeps.

A `State` is passed in and returned; nothing is updated in place, so gradients may flow through any number of calls.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_map_only

from reverie.model.rotary import shift

Batched = TypeVar("Batched")

Eviction = Literal["hard", "sliding"]

Tokens = Int[Tensor, "B T"] | Float[Tensor, "B T D"]
"""Token ids; embeddings where a model takes them in their place."""


class CacheEntry(Protocol):
    """What one block keeps of the tokens in its window."""

    def newest(self, keep: int) -> CacheEntry:
        """The same for the newest `keep` tokens: copies, since a view would hold the whole window in memory."""
        ...


class KVCache(NamedTuple):
    """Keys and values of one attention block; token i of the cache stands at rotary position i."""

    k: Float[Tensor, "B T Hkv d"]  # already rotated
    v: Float[Tensor, "B T Hkv d"]
    rope_base: float

    def newest(self, keep: int) -> KVCache:
        drop = max(self.k.shape[1] - keep, 0)
        return KVCache(shift(self.k[:, drop:], -drop, self.rope_base), self.v[:, drop:].clone(), self.rope_base)


class ConvTail(NamedTuple):
    """The newest conv_size − 1 inputs of a short causal convolution."""

    x: Float[Tensor, "B conv_size-1 C"]

    def newest(self, keep: int) -> ConvTail:
        return ConvTail(self.x.clone())


CACHE_ENTRIES: dict[str, type[Any]] = {"KVCache": KVCache, "ConvTail": ConvTail}
"""Named tuples that a file may hold, by name; the kinds of other models are added where they are defined."""

Cache = KVCache | ConvTail | None
"""Of one block of a `HybridLM`."""


class State(NamedTuple):
    """One entry a block. None stands for empty: no memory written yet (zero), no token cached.

    Awake, both parts grow from call to call. Under hard eviction only `fast_weights` outlives a window.
    """

    fast_weights: tuple[Tensor | None, ...]  # [B, H, K, V] float32 in fast-weight blocks
    cache: tuple[CacheEntry | None, ...]

    @classmethod
    def empty(cls, num_blocks: int) -> State:
        return cls((None,) * num_blocks, (None,) * num_blocks)

    def splice(self, other: State, start: int, stop: int) -> State:
        """This state with blocks start … stop − 1 taken from `other`."""
        return State(
            self.fast_weights[:start] + other.fast_weights[start:stop] + self.fast_weights[stop:],
            self.cache[:start] + other.cache[start:stop] + self.cache[stop:],
        )


def evict(state: State, eviction: Eviction, window_size: int) -> State:
    """Clear the cache at the end of a window of L = window_size tokens; the fast weights stay.

    "hard" keeps nothing. "sliding" keeps the newest L − 1 tokens (paper section 6.4), moved to positions 0 … L − 2 so
    that positions stay bounded in a text of any length, and the convolutions' tails, so that N = 1 is an ordinary
    sliding-window hybrid.
    """
    if eviction == "hard":
        return state._replace(cache=(None,) * len(state.cache))
    return state._replace(cache=tuple(entry and entry.newest(window_size - 1) for entry in state.cache))


def fast_weight_change(before: State, after: State) -> dict[int, Float[Tensor, " B"]]:
    """‖after − before‖ / ‖after‖ by block whose fast weights differ: norms over all entries of that block and row."""
    changes = {}
    for block, (old, new) in enumerate(zip(before.fast_weights, after.fast_weights, strict=True)):
        if new is None or new is old:
            continue
        norm = torch.linalg.vector_norm(new.flatten(1), dim=1)
        change = norm if old is None else torch.linalg.vector_norm((new - old).flatten(1), dim=1)
        changes[block] = change / norm.clamp_min(1e-12)
    return changes


def select_rows(tree: Batched, rows: Int[Tensor, " rows"]) -> Batched:
    """The same for some rows of the batch, in this order; one may come several times.

    Args:
        tree: a State, or anything of tuples and tensors [B, …].
    """
    return tree_map_only(Tensor, lambda x: x.index_select(0, rows), tree)
