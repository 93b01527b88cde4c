"""A `State` as transformers' modules see it: a `Cache` that holds what a call begins with and collects what it leaves.

transformers' own caches write into their tensors, so gradients cannot flow through two calls and a state cannot be kept
for later. This one never writes into what it was given.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache

from reverie.model import CACHE_ENTRIES, State
from reverie.model.room import append


class LayerCache(NamedTuple):
    """What one block of a Hugging Face model keeps of the tokens in its window."""

    k: Float[Tensor, "B H T d"] | None = None
    v: Float[Tensor, "B H T d"] | None = None
    first: int = 0  # position of the first cached token
    conv: tuple[Tensor | None, ...] = ()  # inputs of short convolutions, by transformers' state index

    @property
    def length(self) -> int:
        """Tokens cached."""
        return 0 if self.k is None else self.k.shape[2]

    def with_more(self, k: Tensor, v: Tensor, window: int) -> LayerCache:
        """The same with keys and values [B, H, T, d] of further tokens; see `room.append`."""
        if self.k is not None and self.v is not None:
            k, v = append(self.k, k, 2, window), append(self.v, v, 2, window)
        return LayerCache(k, v, self.first, self.conv)

    def newest(self, keep: int) -> LayerCache:
        """Keys stay rotated as they are: positions go on, only their differences count."""
        conv = tuple(x if x is None else x.clone() for x in self.conv)
        if self.k is None or self.v is None:
            return self._replace(conv=conv)
        drop = max(self.length - keep, 0)
        return LayerCache(self.k[:, :, drop:].clone(), self.v[:, :, drop:].clone(), self.first + drop, conv)


CACHE_ENTRIES["LayerCache"] = LayerCache


class StateCache(Cache):
    """One call of blocks start … stop − 1: the state they begin with, then what they leave (`state()`).

    A decoder's forward carries it as `past_key_values`, so each block finds it there, and no module has to remember
    anything of a call. Blocks are counted as they are called: the layer_idx of one that was moved is not its place.
    Masks and positions are those of tokens that follow what these blocks have cached.
    """

    def __init__(
        self,
        state: State,
        start: int,
        stop: int,
        h: Tensor | None,
        span: int,
        loop: tuple[int, int] | None = None,
        embedded: Tensor | None = None,
        bidirectional: bool = False,
        windows: int = 1,
    ) -> None:
        """
        Args:
            h: [B, T, D], read by block `start`; None: that block reads what the decoder embeds.
            span: tokens that attention may look back on, itself included.
            loop: blocks a and b before which h is kept too, as `entered` and `looped`.
            embedded: [B, T, D], what the decoder embeds, for inserted layers that read it; found by the first block
                where it runs.
            bidirectional: attention sees all of h, not its past alone.
            windows: rows of h that follow each other in a text.
        """
        super().__init__(layers=[])
        self.start, self.stop, self.h, self.span = start, stop, h, span
        self.index = -1  # of the block that runs
        self.loop, self.entered, self.looped = loop or (-1, -1), h, h
        self.embedded, self.bidirectional, self.windows = embedded, bidirectional, windows
        self.fast_weights = list(state.fast_weights)
        self.entries = [LayerCache() if entry is None else cast(LayerCache, entry) for entry in state.cache]
        cached = next((entry for entry in self.entries[start:stop] if entry.k is not None), LayerCache())
        self.past, self.first = cached.length, cached.first
        self._narrowed: tuple[Tensor | None, Tensor | None] | None = None

    def narrowed(self, mask: Tensor | None, h: Tensor) -> Tensor | None:
        """The model's own mask [1, 1, T, past + T], such that a token sees no more than `span`, itself included; if the
        call is bidirectional, what comes later as it sees what came before.

        None is a causal mask, which attention kernels know by themselves, and stays None where nothing is out of sight.
        """
        if self.past + h.shape[1] <= self.span and not self.bidirectional:
            return mask
        if self._narrowed is None or self._narrowed[0] is not mask:  # all blocks are given the same
            self._narrowed = mask, _within(self.span, mask, self.past, h, bidirectional=self.bidirectional)
        return self._narrowed[1]

    def enter(self) -> int:
        """The index of the block that begins, of those that a decoder calls one after the other."""
        self.index += 1
        return self.index

    def passed(self, h: Tensor) -> None:
        """The block that runs has made h."""
        if self.index == self.stop - 1:
            self.h = h
        if self.index == self.loop[0] - 1:
            self.entered = h
        if self.index == self.loop[1] - 1:
            self.looped = h

    def state(self) -> State:
        cache = (entry if entry.k is not None or entry.conv else None for entry in self.entries)
        return State(tuple(self.fast_weights), tuple(cache))

    # Attention

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        entry = self.entries[self.index] = self.entries[self.index].with_more(key_states, value_states, self.span)
        assert entry.k is not None
        assert entry.v is not None
        return entry.k, entry.v

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.first + self.past

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.first + self.past

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.past + query_length, self.first

    # Recurrent layers

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        wanted = range(len(self.entries)) if layer_idx is None else [self.index]
        return any(self.fast_weights[i] is not None for i in wanted)

    def is_recording_past(self, layer_idx: int) -> bool:
        return False

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """A copy, since a step of a single token writes into it."""
        conv = self._conv(state_idx)
        return None if conv is None else self._keep_conv(state_idx, conv.clone())

    def update_conv_state(
        self,
        conv_states: Tensor,
        layer_idx: int,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Append inputs [B, C, T] and return them after those before; the newest `conv_kernel_size` are kept."""
        before = self._conv(state_idx)
        size = conv_kernel_size or (conv_states if before is None else before).shape[-1]
        whole = conv_states if before is None else torch.cat([before, conv_states], dim=-1)
        if before is None and whole.shape[-1] < size:
            whole = torch.nn.functional.pad(whole, (size - whole.shape[-1], 0))
        self._keep_conv(state_idx, whole[..., -size:])
        return whole

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """A copy, since a step of a single token may write into it."""
        before = self.fast_weights[self.index]
        if before is not None:
            before = self.fast_weights[self.index] = before.clone()
        return before

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> Tensor:
        """Store fast weights in float32 at least: under autocast some models hand over bfloat16."""
        kept = recurrent_states.to(torch.promote_types(recurrent_states.dtype, torch.float32))
        self.fast_weights[self.index] = kept
        return kept

    def _conv(self, state_idx: int) -> Tensor | None:
        conv = self.entries[self.index].conv
        return conv[state_idx] if state_idx < len(conv) else None

    def _keep_conv(self, state_idx: int, x: Tensor) -> Tensor:
        conv = list(self.entries[self.index].conv)
        conv += [None] * (state_idx + 1 - len(conv))
        conv[state_idx] = x
        self.entries[self.index] = self.entries[self.index]._replace(conv=tuple(conv))
        return x

    # What generate() asks of every cache

    @property
    def is_compileable(self) -> bool:
        return False


def _within(span: int, mask: Tensor | None, past: int, h: Tensor, *, bidirectional: bool) -> Tensor:
    T, seen = h.shape[1], past + h.shape[1]
    query = torch.arange(past, seen, device=h.device)[:, None]
    key = torch.arange(seen, device=h.device)
    allowed = (key <= query) & (key > query - span)
    if mask is None:
        mask = torch.ones(1, 1, T, seen, dtype=torch.bool, device=h.device)
    seen_by_mask = mask if mask.dtype == torch.bool else mask == 0
    allowed = seen_by_mask & allowed
    if bidirectional:
        window = allowed[..., past:]
        allowed = torch.cat([allowed[..., :past], window | window.transpose(-1, -2)], dim=-1)
    if mask.dtype == torch.bool:
        return allowed
    return torch.zeros_like(mask).masked_fill(~allowed, torch.finfo(mask.dtype).min)
