"""A token awake as one graph of fixed shapes, for a compiler: all blocks of a `HybridLM`.

The graph is given the parameters, so what was compiled serves any model of these sizes and is never older than its
weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from reverie.model.attention import Attention
from reverie.model.changes import Look
from reverie.model.fused import rms_norm
from reverie.model.hybrid import Block, HybridLM
from reverie.model.room import room_after
from reverie.model.state import ConvTail, KVCache, State

Made = tuple[list[Tensor], list[Tensor], list[Tensor]]
"""h before each block and after the last, then new fast weights and tails."""

Run = Callable[[list[Tensor], Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]], Made]
"""`AwakeGraph.forward`."""


class AwakeGraph(nn.Module):
    """A token [B, 1] through all blocks of a model.

    Args:
        span: tokens that attention may look back on, itself included.
    """

    def __init__(self, model: HybridLM, span: int) -> None:
        super().__init__()
        self._blocks = (_Blocks(model, span),)  # in a tuple: its parameters are given, and not the graph's own
        self._names = [name for name, _ in self._blocks[0].named_parameters()]

    def forward(
        self,
        parameters: list[Tensor],
        tokens: Int[Tensor, "B 1"],
        place: Int[Tensor, ""],
        fast_weights: list[Float[Tensor, "B H K V"]],
        tails: list[Float[Tensor, "B conv_size-1 C"]],
        buffers: list[Float[Tensor, "B places Hkv d"]],
    ) -> Made:
        """
        Args:
            place: where keys and values of the tokens are written in the buffers.
            fast_weights, tails: of each block that has them, in order; zeros at the start of a text.
            buffers: of keys and of values in turn, of each attention block.
        """
        given = dict(zip(self._names, parameters, strict=True))
        return functional_call(self._blocks[0], given, (tokens, place, fast_weights, tails, buffers))


class _Blocks(nn.Module):
    def __init__(self, model: HybridLM, span: int) -> None:
        super().__init__()
        self.model, self.span = model, span

    def forward(
        self, tokens: Tensor, place: Tensor, fast_weights: list[Tensor], tails: list[Tensor], buffers: list[Tensor]
    ) -> Made:
        embedded = self.model.embed(tokens)
        hs, states, new_tails = [embedded], list[Tensor](), list[Tensor]()
        kept, before, places = iter(fast_weights), iter(tails), iter(buffers)
        for layer in self.model.layers:
            block, h, more = cast(Block, layer), hs[-1], dict[str, Any]()
            x = rms_norm(h, block.norm_eps)
            if isinstance(block.mixer, Attention):
                y = block.mixer.at_place(x, next(places), next(places), place, self.span)
            else:
                if block.reads_embedded:
                    more["embedded"] = embedded
                y, state, tail = block.mixer(x, next(kept), ConvTail(next(before)), span=self.span, **more)
                states.append(state)
                new_tails.append(tail.x.clone())  # contiguous
            h = h + y
            hs.append(h if block.mlp is None else h + block.mlp(rms_norm(h, block.norm_eps)))
        return hs, states, new_tails


class Awake:
    """What was compiled of the graph, in the place of `embed` and `blocks` for the tokens awake of one model.

    Args:
        run: of these sizes.
        places: tokens that a cache may hold.
        batch_size: B.
    """

    def __init__(self, model: HybridLM, run: Run, *, span: int, places: int, batch_size: int) -> None:
        self._run, self._span, self._places = run, span, torch.arange(places).unbind()
        self._batch_size, self._empty = batch_size, empty_state(model, batch_size)
        self._parameters = [parameter.detach().contiguous() for parameter in model.parameters()]
        self._vocabulary, self._look, self._changed = range(model.config.vocab_size), Look(model), False

    def takes(self, tokens: Tensor, state: State, stop: int, span: int) -> bool:
        """True if this call is what was compiled: a token without gradients, of a model that is as it was."""
        return (
            tokens.shape == (self._batch_size, 1)
            and (tokens.dtype, stop, span) == (torch.long, len(state.cache), self._span)
            and tokens.is_cpu
            and not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
            and all(map(self._fits, state.cache, self._empty.cache))
            and all(map(_alike, state.fast_weights, self._empty.fast_weights))
            and all(token in self._vocabulary for (token,) in tokens.tolist())  # or the process would end
            and self._unchanged()
        )

    def embed_blocks(
        self, tokens: Int[Tensor, "B 1"], state: State, loop: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, State]:
        """As `SleepingModel.embed_blocks`, of all blocks; the state that it begins with stays as it is."""
        before = [none if entry is None else entry for entry, none in zip(state.cache, self._empty.cache, strict=True)]
        kept = [none if x is None else x for x, none in zip(state.fast_weights, self._empty.fast_weights, strict=True)]
        pairs = [entry for entry in before if isinstance(entry, KVCache)]
        place = pairs[0].k.shape[1] if pairs else 0
        rooms = [room_after(x, 1, len(self._places)) for pair in pairs for x in (pair.k, pair.v)]
        hs, states, tails = self._run(
            self._parameters,
            tokens.contiguous(),  # as when it was compiled, which is believed
            self._places[place],
            [x for x in kept if x is not None],
            [entry.x for entry in before if isinstance(entry, ConvTail)],
            [room.buffer for room in rooms],
        )
        new, convs, views = iter(states), map(ConvTail, tails), (room.up_to(place + 1) for room in rooms)
        cache = [
            KVCache(next(views), next(views), entry.rope_base) if isinstance(entry, KVCache) else next(convs)
            for entry in before
        ]
        fast_weights = (None if x is None else next(new) for x in kept)
        a, b = loop
        return hs[0], hs[a], hs[b], hs[-1], State(tuple(fast_weights), tuple(cache))

    def _fits(self, entry: Any, empty: Any) -> bool:
        """True if a cache is what the graph takes."""
        if entry is None:
            return True
        if isinstance(empty, ConvTail):
            return isinstance(entry, ConvTail) and _alike(entry.x, empty.x)
        alike = isinstance(entry, KVCache) and (entry.k.dtype, len(entry.k)) == (empty.k.dtype, self._batch_size)
        return alike and entry.k.shape[1] < len(self._places)

    def _unchanged(self) -> bool:
        """True if the model is as it was when this was compiled."""
        if not self._changed and not self._look.holds():
            self._changed = True
            warnings.warn("the model has changed since it was compiled, and runs as if it were not", stacklevel=2)
        return not self._changed


def empty_state(model: HybridLM, batch_size: int) -> State:
    """A state in which nothing is absent: zeros, and keys and values of no token."""
    with torch.no_grad():
        h = model.embed(torch.zeros(batch_size, 1, dtype=torch.long))
        _, one = model.blocks(h, State.empty(model.num_blocks), 0, model.num_blocks, span=1, embedded=h)
    cache = (
        entry._replace(k=entry.k[:, :0], v=entry.v[:, :0])
        if isinstance(entry, KVCache)
        else ConvTail(torch.zeros_like(entry.x))
        for entry in cast(tuple[Any, ...], one.cache)
    )
    return State(tuple(x if x is None else torch.zeros_like(x) for x in one.fast_weights), tuple(cache))


def _alike(x: Tensor | None, empty: Tensor | None) -> bool:
    return x is None or empty is None or (x.shape, x.dtype, x.is_contiguous()) == (empty.shape, empty.dtype, True)
