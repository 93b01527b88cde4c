"""A token awake as one graph of fixed shapes, for a compiler: a `HybridLM` from the token to its logits.

The graph is given the parameters, so what was compiled serves any model of these sizes and is never older than its
weights.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from operator import attrgetter
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from reverie.model.attention import Attention
from reverie.model.changes import Look, plain_tensors
from reverie.model.fused import rms_norm
from reverie.model.hybrid import Block, HybridLM
from reverie.model.room import room_after
from reverie.model.state import ConvTail, KVCache, State

_version = attrgetter("_version")


Made = tuple[Tensor, Tensor, list[Tensor], list[Tensor]]
"""Logits [B, 1, vocab]; h before each block and after the last, [blocks + 1, B, 1, D]; new fast weights and tails."""

Run = Callable[[list[Tensor], Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]], Made]
"""`AwakeGraph.forward`."""


class AwakeGraph(nn.Module):
    """A token [B, 1] through a model.

    Args:
        span: tokens that attention may look back on, itself included.
        places: tokens that a cache may hold.
    """

    def __init__(self, model: HybridLM, span: int, places: int) -> None:
        super().__init__()
        self._token = (_Token(model, span, places),)  # in a tuple: its parameters are given, and not the graph's own
        self._names = [name for name, _ in self._token[0].named_parameters()]

    def forward(
        self,
        parameters: list[Tensor],
        tokens: Int[Tensor, "B 1"],
        place: Int[Tensor, ""],
        fast_weights: list[Float[Tensor, "B H K V"]],
        tails: list[Float[Tensor, "B conv_size-1 C"]],
        buffers: list[Float[Tensor, "B P Hkv d"]],
    ) -> Made:
        """
        Args:
            place: where keys and values of the tokens are written in the buffers.
            fast_weights, tails: of each block that has them, in order; zeros at the start of a text.
            buffers: of keys and of values in turn, of each attention block; of any number of places up to the most.
        """
        given = dict(zip(self._names, parameters, strict=True))
        return functional_call(self._token[0], given, (tokens, place, fast_weights, tails, buffers))


class _Token(nn.Module):
    def __init__(self, model: HybridLM, span: int, places: int) -> None:
        super().__init__()
        self.model, self.span, self.places = model, span, places

    def forward(
        self, tokens: Tensor, place: Tensor, fast_weights: list[Tensor], tails: list[Tensor], buffers: list[Tensor]
    ) -> Made:
        embedded = self.model.embed(tokens)
        hs, states, new_tails = [embedded], list[Tensor](), list[Tensor]()
        kept, before, rooms = iter(fast_weights), iter(tails), iter(buffers)
        for layer in self.model.layers:
            block, h, more = cast(Block, layer), hs[-1], dict[str, Any]()
            x = rms_norm(h, block.norm_eps)
            if isinstance(block.mixer, Attention):
                y = block.mixer.at_place(x, next(rooms), next(rooms), place, self.span, self.places)
            else:
                if block.reads_embedded:
                    more["embedded"] = embedded
                y, state, tail = block.mixer(x, next(kept), ConvTail(next(before)), span=self.span, **more)
                states.append(state)
                new_tails.append(tail.x.clone())  # contiguous
            h = h + y
            hs.append(h if block.mlp is None else h + block.mlp(rms_norm(h, block.norm_eps)))
        return self.model.head(hs[-1]), torch.stack(hs), states, new_tails


class Awake:
    """What was compiled of the graph, in the place of a model for its tokens awake.

    Args:
        run: of these sizes.
        places: tokens that a cache may hold.
        batch_size: B.
    """

    def __init__(self, model: HybridLM, run: Run, *, span: int, places: int, batch_size: int) -> None:
        self._device = next(model.parameters()).device
        self._run, self._span, self._places = run, span, torch.arange(places, device=self._device).unbind()
        self._batch_size, self._empty = batch_size, empty_state(model, batch_size)
        self._attending = [i for i, entry in enumerate(self._empty.cache) if isinstance(entry, KVCache)]
        self._parameters = [parameter.detach().contiguous() for parameter in model.parameters()]
        self._vocabulary, self._changed = range(model.config.vocab_size), False
        self._look = Look(model)
        self._tensors = list(plain_tensors(self._look.tensors))
        self._same = [x.detach() for x in self._tensors]  # their storages stay what they are as long as this lives
        self._counted = [x for x in self._tensors if not x.is_inference()]
        self._versions = [*map(_version, self._counted)]

    def takes(self, tokens: Tensor, state: State, span: int) -> bool:
        """True if this call is what was compiled: a token without gradients, of a model that is as it was."""
        return (
            tokens.shape == (self._batch_size, 1)
            and (tokens.dtype, len(state.cache), span) == (torch.long, len(self._empty.cache), self._span)
            and tokens.device == self._device
            and not (torch.is_grad_enabled() or torch.is_autocast_enabled(self._device.type))
            and all(map(_fits, state.cache, self._empty.cache))
            and self._place(state) < len(self._places)
            and all(map(_alike, state.fast_weights, self._empty.fast_weights))
            and all(token in self._vocabulary for (token,) in tokens.tolist())  # or the process would end
            and self._unchanged()
        )

    def __call__(self, tokens: Int[Tensor, "B 1"], state: State) -> tuple[Tensor, Tensor, State]:
        """Logits, h before each block and after the last, and the state, for a call that it takes; the state that it
        begins with stays as it is."""
        before = [none if entry is None else entry for entry, none in zip(state.cache, self._empty.cache, strict=True)]
        kept = [none if x is None else x for x, none in zip(state.fast_weights, self._empty.fast_weights, strict=True)]
        cached = [x for entry in before if isinstance(entry, KVCache) for x in (entry.k, entry.v)]
        place = cached[0].shape[1] if cached else 0
        room = room_after(cached, 1, len(self._places)) if cached else None
        logits, hs, states, tails = self._run(
            self._parameters,
            tokens.contiguous(),  # as when it was compiled, which is believed
            self._places[place],
            [x for x in kept if x is not None],
            [entry.x.contiguous() for entry in before if isinstance(entry, ConvTail)],  # of many rows it may be a view
            [] if room is None else room.buffers,
        )
        new, convs, views = iter(states), iter(tails), iter([] if room is None else room.up_to(place + 1))
        cache = tuple(
            KVCache(next(views), next(views), entry.rope_base) if isinstance(entry, KVCache) else ConvTail(next(convs))
            for entry in before
        )
        return logits, hs, State(tuple(None if x is None else next(new) for x in kept), cache)

    def _place(self, state: State) -> float:
        """How many tokens are cached; infinity if not the same in all blocks."""
        lengths = {0 if (entry := state.cache[i]) is None else cast(KVCache, entry).k.shape[1] for i in self._attending}
        return lengths.pop() if len(lengths) == 1 else math.inf if lengths else 0

    def _unchanged(self) -> bool:
        """True if the model is as it was when this was compiled."""
        if not self._changed and not (
            [*map(_version, self._counted)] == self._versions
            and self._look.parts_hold()
            and all(map(Tensor.is_set_to, self._tensors, self._same))
        ):
            self._changed = True
            warnings.warn("the model has changed since it was compiled, and runs as if it were not", stacklevel=2)
        return not self._changed


def empty_state(model: HybridLM, batch_size: int) -> State:
    """A state in which nothing is absent: zeros, and keys and values of no token."""
    with torch.no_grad():
        h = model.embed(torch.zeros(batch_size, 1, dtype=torch.long, device=next(model.parameters()).device))
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


def _fits(entry: Any, empty: Any) -> bool:
    """True if a cache is what the graph takes, of however many tokens."""
    if entry is None:
        return True
    if isinstance(empty, ConvTail):
        return isinstance(entry, ConvTail) and (entry.x.shape, entry.x.dtype) == (empty.x.shape, empty.x.dtype)
    if not isinstance(entry, KVCache) or entry.k.shape != entry.v.shape:
        return False
    sizes, wanted = ((len(pair.k), pair.k.shape[2:], pair.k.dtype, pair.v.dtype) for pair in (entry, empty))
    return sizes == wanted
