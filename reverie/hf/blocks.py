"""A Hugging Face decoder as a `SleepingModel`: its own forward, with some of its blocks skipped.

Masks, positions and whatever else a decoder does around its blocks stay the model's own business. A call that runs
blocks [a, b) hands a `StateCache` to the decoder's forward; each block finds it among its arguments and runs, or lets h
pass by. No module keeps state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin, DynamicCache, LinearAttentionCacheLayerMixin
from transformers.utils.generic import ModelOutput

from reverie.errors import UserError
from reverie.hf.attending import Attend, compiled
from reverie.hf.state import StateCache
from reverie.model import ConvTail, State, Tokens

INSERTED = "fast_weight_mixer"
Kind = Literal["jet", "gdn"]


class InsertConfig(NamedTuple):
    """What was inserted; sizes as in `HybridConfig`."""

    layers: tuple[int, ...]  # behind which blocks
    kind: Kind
    heads: int
    key_size: int
    value_size: int
    conv_size: int = 4


class SleepingBlock(nn.Module):
    """Mixed in front of the class of a decoder's layer."""

    stock: type[nn.Module]  # what it was before
    index: int
    in_decoder: InDecoder

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        call = kwargs.get("past_key_values")
        if not isinstance(call, StateCache):
            raise TypeError(f"block {self.index} of a sleeping model runs through reverie alone")
        if call.stop == 0:
            raise _Embedded(hidden_states)
        if self.index == call.start - 1:
            return self.in_decoder.packed(call.h.to(hidden_states.device))
        if not call.start <= self.index < call.stop:
            return self.in_decoder.packed(hidden_states)
        if self.index == call.start:
            hidden_states = call.h.to(hidden_states.device)  # blocks may be on several devices
        if self.in_decoder.attends[self.index]:
            kwargs["attention_mask"] = call.narrowed(kwargs.get("attention_mask"), hidden_states)
        if (attend := self.in_decoder.attend) is None:
            output = super().forward(hidden_states, *args, **kwargs)
        else:
            entry, kwargs = call.entries[self.index], {key: x for key, x in kwargs.items() if key != "past_key_values"}
            output, k, v = attend(self, hidden_states, entry.k, entry.v, kwargs)
            call.entries[self.index] = entry._replace(k=k, v=v)
        self.in_decoder.returns = len(output) if isinstance(output, tuple) else None
        h = output[0] if isinstance(output, tuple) else output
        if (inserted := inserted_mixer(self)) is not None:
            h = _write(inserted, h, call, self.index)
        if self.index == call.stop - 1:
            call.h = h
        return self.in_decoder.packed(h)


class InDecoder:
    """What the blocks of one decoder share: which of them attend, and in what a block returns its h."""

    def __init__(self, attends: Sequence[bool]) -> None:
        self.attends = attends
        self.attend: Attend | None = None  # how blocks run that were compiled
        self.returns: int | None = None  # the length of a tuple, known once a block has run; None: h itself

    def packed(self, h: Tensor) -> Any:
        return h if self.returns is None else (h,) + (None,) * (self.returns - 1)


class _Embedded(Exception):
    """Thrown from where block 0 begins."""

    def __init__(self, h: Tensor) -> None:
        super().__init__()
        self.h = h


class DecoderBlocks:
    """`SleepingModel` over a decoder; its head is the final norm, so that the causal LM around it makes the logits."""

    def __init__(self, decoder: Any, layers: nn.ModuleList) -> None:
        self.decoder, self.layers = decoder, layers
        self.recurrent, self.attends = block_kinds(decoder, len(layers))

    @property
    def num_blocks(self) -> int:
        return len(self.layers)

    @property
    def fast_weight_blocks(self) -> Sequence[int]:
        return [i for i, layer in enumerate(self.layers) if self.recurrent[i] or inserted_mixer(layer) is not None]

    def compile(self, backend: str) -> None:
        """Blocks run through `torch.compile` from now on. Raises UserError where they hold more than attention does."""
        if any(self.recurrent) or not all(self.attends):
            raise UserError(
                f"train.compile takes decoders whose blocks all attend, and {type(self.decoder).__name__} has others: "
                "set train.compile=false"
            )
        attend = compiled(backend, self.layers)
        for layer in self.layers:
            cast(SleepingBlock, layer).in_decoder.attend = attend
            if (inserted := inserted_mixer(layer)) is not None:
                inserted.compile(backend=backend, dynamic=False)

    def embed(self, tokens: Tokens) -> Tensor:
        """All that the decoder does in front of its first block."""
        name = "inputs_embeds" if tokens.is_floating_point() else "input_ids"
        try:
            self.call(tokens, StateCache(State.empty(self.num_blocks), 0, 0, tokens, 1), name)
        except _Embedded as embedded:
            return embedded.h
        raise AssertionError("the decoder ran without its first block")

    def blocks(
        self, h: Tensor, state: State, start: int, stop: int, *, span: int, output: bool = True
    ) -> tuple[Tensor, State]:
        cache = StateCache(state, start, stop, h, span)
        self.call(h, cache)
        return cache.h, cache.state()

    def head(self, h: Tensor) -> Tensor:
        return self.norm(h)["last_hidden_state"]

    def norm(self, h: Tensor) -> ModelOutput:
        """All that the decoder does behind its last block, to h [B, T, D]."""
        return self.call(h, StateCache(State.empty(self.num_blocks), self.num_blocks, self.num_blocks, h, 1))

    def call(self, x: Tensor, cache: StateCache, name: str = "inputs_embeds") -> Any:
        begin = cache.get_seq_length()
        positions = torch.arange(begin, begin + x.shape[1], device=x.device)[None]
        return self.decoder(past_key_values=cache, position_ids=positions, use_cache=True, **{name: x})


def inserted_mixer(layer: nn.Module) -> nn.Module | None:
    """What `insert_fast_weights` put behind a decoder's layer."""
    return getattr(layer, INSERTED, None)


def block_kinds(decoder: Any, num_blocks: int) -> tuple[list[bool], list[bool]]:
    """Of each block, whether it is recurrent, and whether it attends; by the cache that transformers makes for it."""
    layers = DynamicCache(config=decoder.config).layers
    if not layers:  # made as they are used, all for attention
        return [False] * num_blocks, [True] * num_blocks
    return (
        [isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers],
        [isinstance(layer, CacheLayerMixin) for layer in layers],
    )


def _write(inserted: nn.Module, h: Tensor, call: StateCache, index: int) -> Tensor:
    """Through the layer behind block `index`, whose fast weights and convolution are in the call."""
    entry = call.entries[index]
    tail = ConvTail(entry.conv[0]) if entry.conv and entry.conv[0] is not None else None
    h, call.fast_weights[index], tail = inserted(h, call.fast_weights[index], tail)
    call.entries[index] = entry._replace(conv=(tail.x,))
    return h
