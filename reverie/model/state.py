"""`State`, all that a model carries from one call to the next, and eviction.

A state is passed in and returned; nothing is updated in place, so gradients may flow through any number of calls.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from jaxtyping import Float, Int
from rich.filesize import decimal
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from reverie.model.rotary import shift

Batched = TypeVar("Batched")

Eviction = Literal["hard", "sliding"]

Tokens = Int[Tensor, "B T"] | Float[Tensor, "B T D"]
"""Token ids, or embeddings for models that accept them."""


class CacheEntry(Protocol):
    """Protocol of a block's cache: what it keeps of the tokens in its window."""

    def newest(self, keep: int) -> CacheEntry:
        """A cache of the newest `keep` tokens alone; copies, since a view would keep the whole window in memory."""
        ...


class KVCache(NamedTuple):
    """Keys and values of one attention block; token i of the cache has rotary position i."""

    k: Float[Tensor, "B T Hkv d"]  # already rotated
    v: Float[Tensor, "B T Hkv d"]
    rope_base: float

    def newest(self, keep: int) -> KVCache:
        """The newest `keep` tokens, moved to positions 0 … keep − 1."""
        drop = max(self.k.shape[1] - keep, 0)
        return KVCache(shift(self.k[:, drop:], -drop, self.rope_base), self.v[:, drop:].clone(), self.rope_base)


class ConvTail(NamedTuple):
    """The newest conv_size − 1 inputs of a short causal convolution."""

    x: Float[Tensor, "B conv_size-1 C"]

    def newest(self, keep: int) -> ConvTail:
        """A copy of all of it, whatever `keep`."""
        return ConvTail(self.x.clone())


CACHE_ENTRIES: dict[str, type[Any]] = {"KVCache": KVCache, "ConvTail": ConvTail}
"""Types of cache that a file may hold, by name; other models add theirs where they define them."""

Cache = KVCache | ConvTail | None
"""The cache of one block of a `HybridLM`."""


class State(NamedTuple):
    """Fast weights and cache of every block. None means empty: fast weights of zero, no token cached.

    Awake, caches grow from call to call. Under hard eviction only `fast_weights` outlives a window.
    """

    fast_weights: tuple[Tensor | None, ...]  # [B, H, K, V] float32 in fast-weight blocks
    cache: tuple[CacheEntry | None, ...]

    @classmethod
    def empty(cls, num_blocks: int) -> State:
        """The state before the first token."""
        return cls((None,) * num_blocks, (None,) * num_blocks)

    def __repr__(self) -> str:
        """One line, such as "State(2 texts, fast weights in 2 of 4 blocks, cache in 1, 16.4 kB)"."""
        tensors = [x for x in tree_leaves(tuple(self)) if isinstance(x, Tensor)]
        texts = f"{len(tensors[0])} {'text' if len(tensors[0]) == 1 else 'texts'}" if tensors else "empty"
        weights, cache = (sum(x is not None for x in kept) for kept in self)
        blocks = f"fast weights in {weights} of {len(self.fast_weights)} blocks, cache in {cache}"
        return f"State({texts}, {blocks}, {decimal(sum(x.nbytes for x in tensors))})"

    def splice(self, other: State, start: int, stop: int) -> State:
        """This state with blocks start … stop − 1 taken from `other`."""
        return State(
            self.fast_weights[:start] + other.fast_weights[start:stop] + self.fast_weights[stop:],
            self.cache[:start] + other.cache[start:stop] + self.cache[stop:],
        )


def evict(state: State, eviction: Eviction, window_size: int) -> State:
    """Evict the tokens of a window of L = window_size tokens from the cache; the fast weights stay.

    "hard" keeps nothing. "sliding" keeps the newest L − 1 tokens (paper section 6.4), moved to positions 0 … L − 2 so
    that positions stay bounded in a text of any length, and the convolutions' tails, so that N = 1 is an ordinary
    sliding-window hybrid.
    """
    if eviction == "hard":
        return state._replace(cache=(None,) * len(state.cache))
    return state._replace(cache=tuple(entry and entry.newest(window_size - 1) for entry in state.cache))


def fast_weight_change(before: State, after: State) -> dict[int, Float[Tensor, " B"]]:
    """Relative change ‖after − before‖ / ‖after‖ of fast weights, by block that has changed.

    Norms are over all entries of a block, per row of the batch.
    """
    changes = {}
    for block, (old, new) in enumerate(zip(before.fast_weights, after.fast_weights, strict=True)):
        if new is None or new is old:
            continue
        norm = torch.linalg.vector_norm(new.flatten(1), dim=1)
        change = norm if old is None else torch.linalg.vector_norm((new - old).flatten(1), dim=1)
        changes[block] = change / norm.clamp_min(1e-12)
    return changes


def select_rows(tree: Batched, rows: Int[Tensor, " rows"]) -> Batched:
    """Select rows of the batch from each tensor, in this order; a row may be selected several times.

    Args:
        tree: a State, or any nesting of tuples and tensors [B, …].
    """
    return tree_map_only(Tensor, lambda x: x.index_select(0, rows), tree)
