"""How a call runs: a decoder of transformers as a `SleepingModel`, in one forward of its own.

Masks, positions and whatever else a decoder does around its blocks stay the model's own business. A call of blocks
[a, b) is one forward of the decoder with a `StateCache` in the place of its cache: each of these blocks finds there
what it reads and leaves there what it made, and the other blocks are not called. No module keeps anything of a call, so
several threads may use one model at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from reverie.errors import UserError
from reverie.hf.compiled import Attend, compiled_attend
from reverie.hf.decoders import decoder_of
from reverie.hf.reading import AWAKE, cache_for, read_batch, refuse_recording
from reverie.hf.state import StateCache
from reverie.model import ConvTail, Injection, State, Tokens
from reverie.sleep import SleepConfig
from reverie.sleep.gradients import Backward

INSERTED, INJECTION = "fast_weight_mixer", "sleep_injection"


class InsertConfig(NamedTuple):
    """The layers that one call of `insert_fast_weights` inserted; sizes as in `HybridConfig`."""

    after: tuple[int, ...]  # indices of the blocks that such a layer follows
    kind: str  # of mixer
    fast_heads: int
    key_size: int
    value_size: int
    conv_size: int = 4
    value_embedding: bool = False
    settings: Mapping[str, Any] | None = None  # of the mixer's own


def inserted_mixer(layer: nn.Module) -> nn.Module | None:
    """The layer that `insert_fast_weights` put after a decoder's block."""
    return getattr(layer, INSERTED, None)


def inserted_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of inserted layers and of what passes of sleep read, by name."""
    return {name: p for name, p in model.named_parameters() if is_inserted(name)}


def is_inserted(name: str) -> bool:
    """True if a parameter of this name belongs to an inserted layer, or to what passes of sleep read."""
    return any(f".{place}." in f".{name}" for place in (INSERTED, INJECTION))


def _holds_fast_weights(block: nn.Module) -> bool:
    return getattr(block, "recurrent", False) or inserted_mixer(block) is not None


class SleepingBlock(nn.Module):
    """Mixed in before the class of a decoder's block. It reads the `StateCache` of the call, and writes into it."""

    stock: type[nn.Module]  # its class without this one
    said: dict[str, Any]  # what the config said of it when it was made to sleep
    attends: bool
    recurrent: bool  # it has fast weights of its own
    attend: Attend | None  # how it runs if it was compiled

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        call = kwargs.get("past_key_values")
        if not isinstance(call, StateCache):
            raise TypeError("a block of a sleeping model runs through reverie alone")
        index = call.enter()
        if index == call.start and call.h is not None:
            hidden_states = call.h.to(hidden_states.device)  # blocks may be on several devices
        elif index == 0:
            call.embedded = hidden_states
        if self.attends:
            kwargs["attention_mask"] = call.narrowed(kwargs.get("attention_mask"), hidden_states)
        if self.attend is None:
            output = super().forward(hidden_states, *args, **kwargs)
        else:
            entry, kwargs = call.entries[index], {key: x for key, x in kwargs.items() if key != "past_key_values"}
            output, k, v = self.attend(self, hidden_states, entry.k, entry.v, kwargs)
            call.entries[index] = entry._replace(k=k, v=v)
        h = output[0] if isinstance(output, tuple) else output
        if (inserted := inserted_mixer(self)) is not None:
            h = _write(inserted, h, call)
        call.passed(h)
        return (h, *[None] * (len(output) - 1)) if isinstance(output, tuple) else h

    def __getstate__(self) -> dict[str, Any]:
        """Without its compiled form, as torch does it."""
        return {**super().__getstate__(), "attend": None}


def _write(inserted: nn.Module, h: Tensor, call: StateCache) -> Tensor:
    """h [B, T, D] after the layer inserted after the block that runs, which reads and writes its place in the call."""
    index = call.index
    entry = call.entries[index]
    tail = ConvTail(entry.conv[0]) if entry.conv and entry.conv[0] is not None else None
    h, call.fast_weights[index], tail = inserted(h, call.fast_weights[index], tail, call.embedded)
    if not isinstance(tail, ConvTail | None):
        raise UserError(f"an inserted mixer may keep a ConvTail or nothing, and this one keeps a {type(tail).__name__}")
    call.entries[index] = entry._replace(conv=() if tail is None else (tail.x,))
    return h


class _Skipped:
    """Stands for a block that a call leaves out: it hands on what the decoder embedded, or the h of the call."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)  # a decoder may ask of which type a block is

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        call: StateCache = kwargs["past_key_values"]
        call.enter()
        if call.h is None:
            call.h = hidden_states
        return call.h.detach().as_subclass(_Either)


class _Either(Tensor):
    """h for a decoder whose blocks return it, and for one whose blocks return a pair that begins with it."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    def __iter__(self) -> Any:
        return iter((self, None))

    def __getitem__(self, index: Any) -> Any:
        return self if isinstance(index, int) and index == 0 else super().__getitem__(index)


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
        return [i for i, block in enumerate(self.layers) if _holds_fast_weights(block)]

    @property
    def reads_embedded(self) -> bool:
        return any(getattr(inserted_mixer(layer), "value_embed", False) for layer in self.layers)

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
    ) -> tuple[Tensor, State]:
        call = StateCache(state, start, stop, h, span, embedded=embedded, bidirectional=bidirectional)
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
        if len(call.entries) != self.num_blocks:
            raise UserError(
                f"what was read before was read with {len(call.entries)} blocks, and now there are "
                f"{self.num_blocks}: read it anew"
            )
        if (call.start, call.stop) != (0, self.num_blocks):
            decoder = object.__new__(type(decoder))
            decoder.__dict__ = self.decoder.__dict__ | {
                "layers": [
                    layer if call.start <= i < call.stop else _Skipped(layer) for i, layer in enumerate(self.layers)
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


class Request(Cache):
    """What a causal LM hands to its decoder in the place of a cache: the caller's cache, and which logits it wants."""

    def __init__(self, past: Any, newest_only: bool) -> None:
        super().__init__(layers=[])
        self.past, self.newest_only = past, newest_only


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

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> DecoderOutput:
        past, newest_only = past_key_values, False
        if isinstance(past, Finished):
            return DecoderOutput(past.h)  # pyright: ignore[reportArgumentType]
        if isinstance(past, Request):
            past, newest_only = past.past, past.newest_only
        tokens = inputs_embeds if input_ids is None else input_ids
        if tokens is None or (input_ids is not None and inputs_embeds is not None):
            raise UserError("give either input_ids or inputs_embeds")
        refuse_recording(self.config, kwargs)
        blocks = self.sleeping
        cache = cache_for(past, attention_mask, tokens, blocks, position_ids)
        backward = self.backward_config
        h = read_batch(blocks, tokens, cache, self.sleep_config, newest_only=newest_only, backward=backward)
        keep = self.config.use_cache if use_cache is None else use_cache
        return DecoderOutput(h, cache if keep else None)  # pyright: ignore[reportArgumentType]


def sleeping_decoder(model: nn.Module) -> SleepingDecoder:
    """The decoder of a model that can sleep (`add.install`). Raises UserError where it was replaced since."""
    decoder = decoder_of(cast(PreTrainedModel, model))
    if not isinstance(decoder, SleepingDecoder):
        raise UserError(
            f"the decoder of {type(model).__name__} was replaced since it could sleep: put one there before"
        )
    return decoder


def check_blocks(decoder: SleepingDecoder) -> None:
    """Check that a forward of the decoder would run all of its blocks, each as what it is.

    Blocks may be taken out, repeated or moved: a block's place is the one that it has when it is called.

    Raises:
        UserError: there are blocks that cannot sleep, or that do not fit the config.
    """
    name, config = type(decoder).__name__, decoder.config
    if len(decoder.layers) > config.num_hidden_layers:
        raise UserError(
            f"{name} has {len(decoder.layers)} blocks, and its config.num_hidden_layers is {config.num_hidden_layers}: "
            "set it, or the others would not run"
        )
    for i, block in enumerate(decoder.layers):
        if not isinstance(block, SleepingBlock):
            raise UserError(f"block {i} of {name} cannot sleep: put blocks into a model before it can sleep, not after")
        for key, value in block.said.items():
            if list(getattr(config, key))[i : i + 1] != [value]:
                raise UserError(
                    f"block {i} of {name} was made with {value} of config.{key}, which says otherwise: set it"
                )
    if decoder.sleep_config != AWAKE and not any(map(_holds_fast_weights, decoder.layers)):
        raise UserError(f"no block of {name} holds fast weights any more, so nothing would outlive its window")
