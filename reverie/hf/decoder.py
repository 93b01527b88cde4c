"""How a call runs: a decoder of transformers as a `SleepingModel`, in one forward of its own.

Masks, positions and whatever else a decoder does around its blocks stay the model's own business. A call of blocks
[a, b) is one forward of the decoder with a `StateCache` in the place of its cache: each of these blocks finds there
what it reads and leaves there what it made, and the other blocks are not called. No module keeps anything of a call, so
several threads may use one model at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from reverie.errors import UserError
from reverie.hf.arguments import BY_DECODER, Request, by_name, requested, tokens_of
from reverie.hf.blocks import InsertConfig, Skipped, SleepingBlock, check_blocks, holds_fast_weights, inserted_mixer
from reverie.hf.compiled import compiled_attend
from reverie.hf.decoders import decoder_of
from reverie.hf.reading import AWAKE, check_unchanged, read_batch
from reverie.hf.state import StateCache
from reverie.model import Injection, State, Tokens
from reverie.model.fast_weights import window_bytes
from reverie.sleep import SleepConfig
from reverie.sleep.gradients import Backward


class DecoderBlocks:
    """`SleepingModel` over a decoder; its head is the final norm, so that the causal LM around it makes the logits."""

    def __init__(self, decoder: SleepingDecoder) -> None:
        self.decoder = decoder

    @property
    def layers(self) -> nn.ModuleList:
        return self.decoder.layers

    @property
    def num_blocks(self) -> int:
        return len(self.layers)

    @property
    def fast_weight_blocks(self) -> Sequence[int]:
        return [i for i, block in enumerate(self.layers) if holds_fast_weights(block)]

    @property
    def reads_embedded(self) -> bool:
        return any(getattr(inserted_mixer(layer), "value_embed", False) for layer in self.layers)

    @property
    def window_bytes(self) -> int | None:
        """Bytes of fast weights after a window of one text; None if `blocks` cannot run several windows in one call.

        It can where all fast weights are in inserted layers.
        """
        layers = [inserted_mixer(block) for block in self.layers if holds_fast_weights(block)]
        if any(getattr(block, "recurrent", False) for block in self.layers):
            return None
        return window_bytes(getattr(x, "mixer", None) if "forward" not in vars(x) else None for x in layers)

    @property
    def injects(self) -> bool:
        return self.decoder.sleep_injection is not None

    def inject(self, n: int, h: Tensor, embedded: Tensor) -> Tensor:
        """What pass n ≥ 2 reads; the decoder's injection says it."""
        injection = self.decoder.sleep_injection
        return h if injection is None else injection(n, h, embedded.to(h.device))

    def compile_blocks(self, backend: str) -> None:
        """Blocks run through `torch.compile` from now on. Raises UserError where they hold more than attention does."""
        blocks = cast(Sequence[SleepingBlock], self.layers)
        if any(block.recurrent or not block.attends for block in blocks):
            name = type(self.decoder).__name__
            raise UserError(f"compiling takes a decoder whose blocks all attend, and {name} has others")
        compiled = compiled_attend(backend, self.layers)
        for block in blocks:
            block.attend = compiled
            if (inserted := inserted_mixer(block)) is not None:
                inserted.compile(backend=backend, dynamic=False)

    def embed(self, tokens: Tokens) -> Tensor:
        """All that the decoder does before its first block: tokens [B, T] to h [B, T, D]."""
        call = StateCache(State.empty(self.num_blocks), 0, 0, None, 1)
        self._run(tokens, call)
        return cast(Tensor, call.h)

    def blocks(
        self,
        h: Tensor,
        state: State,
        start: int,
        stop: int,
        *,
        span: int,
        output: bool = True,
        embedded: Tensor | None = None,
        bidirectional: bool = False,
        windows: int = 1,
    ) -> tuple[Tensor, State]:
        call = StateCache(state, start, stop, h, span, embedded=embedded, bidirectional=bidirectional, windows=windows)
        self._run(h, call)
        return cast(Tensor, call.h), call.state()

    def embed_blocks(
        self, tokens: Tokens, state: State, loop: tuple[int, int], stop: int, *, span: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, State]:
        """`embed` and blocks [0, stop) in one forward: the embedded tokens, h before blocks a and b of the loop, h at
        the end, and the state."""
        call = StateCache(state, 0, stop, None, span, loop)
        self._run(tokens, call)
        embedded = cast(Tensor, call.embedded)
        entered = embedded if loop[0] == 0 else cast(Tensor, call.entered)
        return embedded, entered, cast(Tensor, call.looped), cast(Tensor, call.h), call.state()

    def head(self, h: Tensor) -> Tensor:
        """All that the decoder does after its last block, to h [..., D]."""
        if (norm := self.decoder.final_norm) is not None:
            return getattr(self.decoder, norm)(h)
        flat = h.reshape(1, -1, h.shape[-1])
        end = StateCache(State.empty(self.num_blocks), self.num_blocks, self.num_blocks, flat, 1)
        return self._run(flat, end).reshape(h.shape)

    def _run(self, x: Tensor, call: StateCache) -> Tensor:
        """One forward of the decoder, from tokens or embeddings [B, T, …] to what it returns [B, T, D].

        Where not all blocks run, it is that of a shallow copy, which has the same parameters.
        """
        decoder: Any = self.decoder
        check_blocks(decoder)
        if decoder.sleep_config != AWAKE and not self.fast_weight_blocks:
            raise UserError("no block holds fast weights any more, so nothing would outlive its window")
        if len(call.entries) != self.num_blocks:
            raise UserError(
                f"what was read before was read with {len(call.entries)} blocks, and now there are "
                f"{self.num_blocks}: read it anew"
            )
        if (call.start, call.stop) != (0, self.num_blocks):
            decoder = object.__new__(type(decoder))
            decoder.__dict__ = self.decoder.__dict__ | {
                "layers": [
                    layer if call.start <= i < call.stop else Skipped(layer) for i, layer in enumerate(self.layers)
                ]
            }
        begin = call.get_seq_length()
        given = {
            "inputs_embeds" if x.is_floating_point() else "input_ids": x,
            "position_ids": torch.arange(begin, begin + x.shape[1], device=x.device)[None],
        }
        return decoder.stock.forward(decoder, past_key_values=call, use_cache=True, **given).last_hidden_state


# The decoder as its causal language model sees it


@dataclass
class DecoderOutput(BaseModelOutputWithPast):
    """What a decoder that sleeps returns."""

    router_logits: tuple[Tensor, ...] | None = None  # asked for by mixtures of experts


class Finished(Cache):
    """What takes the place of a cache where the decoder has run already, and its causal LM is to make the logits."""

    def __init__(self, h: Tensor) -> None:
        super().__init__(layers=[])
        self.h = h


class SleepingDecoder(nn.Module):
    """Mixed in before a decoder's class."""

    stock: type[nn.Module]
    config: PreTrainedConfig
    layers: nn.ModuleList
    final_norm: str | None  # the name of the norm that is all there is after the last block
    sleep_injection: Injection | None
    injection_name: str
    sleep_config: SleepConfig
    backward_config: Backward

    @property
    def inserted_configs(self) -> tuple[InsertConfig, ...]:
        """What calls of insert_fast_weights inserted, after the blocks that each of these layers follows now."""
        found: list[tuple[InsertConfig, list[int]]] = []
        for i, layer in enumerate(self.layers):
            if (inserted := inserted_mixer(layer)) is not None:
                config = cast(InsertConfig, inserted.config)
                known = next((after for other, after in found if other == config), None)
                if known is None:
                    found.append((config, [i]))
                else:
                    known.append(i)
        return tuple(config._replace(after=tuple(after)) for config, after in found)

    @property
    def sleeping(self) -> DecoderBlocks:
        return DecoderBlocks(self)

    def forward(self, *args: Any, **kwargs: Any) -> DecoderOutput | tuple[Any, ...]:
        kwargs = by_name(self.stock.forward, args, kwargs)
        past, blocks, wanted = kwargs.get("past_key_values"), self.sleeping, True
        if isinstance(past, Finished):
            return DecoderOutput(past.h)  # pyright: ignore[reportArgumentType]
        if not isinstance(past, Request):  # called by itself, and not by its causal LM
            wanted = kwargs.get("return_dict")
            wanted = self.config.return_dict if wanted is None else wanted
            past = requested(blocks, self.config, kwargs, BY_DECODER)
        check_unchanged(past.cache, self)
        h = read_batch(blocks, tokens_of(kwargs), past, self.sleep_config, backward=self.backward_config)
        keep = kwargs.get("use_cache")
        keep = self.config.use_cache if keep is None else keep
        output = DecoderOutput(h, past.cache if keep else None)  # pyright: ignore[reportArgumentType]
        return output if wanted else output.to_tuple()


def sleeping_decoder(model: nn.Module) -> SleepingDecoder:
    """The decoder of a model that can sleep (`add.install`). Raises UserError where it was replaced since."""
    decoder = decoder_of(cast(PreTrainedModel, model))
    if not isinstance(decoder, SleepingDecoder):
        raise UserError(
            f"the decoder of {type(model).__name__} was replaced since it could sleep: put one there before"
        )
    return decoder
