"""`add_sleep`: a Hugging Face causal language model that sleeps whenever its window is full.

The model keeps its weights, its names and its class's name; `generate`, `Trainer`, peft and `save_pretrained` go on as
before. What changes is how the decoder reads: window by window, through `reverie.sleep.read`.
"""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.utils import ModelOutput

from reverie.backward import EXACT, Backward
from reverie.errors import UserError
from reverie.hf.blocks import DecoderBlocks, InDecoder, SleepingBlock
from reverie.hf.cache import Group, SleepCache, begin
from reverie.hf.models import check_decoder, decoder_of
from reverie.hf.state import StateCache
from reverie.sleep import Context, SleepConfig, plan, read

Model = TypeVar("Model", bound=PreTrainedModel)

AWAKE = SleepConfig(window_size=sys.maxsize)
"""A window that is never full: a model that could sleep, but does not."""


def add_sleep(model: Model, config: SleepConfig) -> Model:
    """Make a causal language model of transformers sleep, in place; again, to change how.

    Args:
        model: a decoder with fast weights of its own, or with inserted ones (`insert_fast_weights`).

    Returns `model`.

    Raises UserError for a model that cannot sleep, or a config that does not fit it.
    """
    install(model)
    decoder = decoder_of(model)
    if not decoder.sleeping.fast_weight_blocks:
        raise UserError(
            f"{type(model).__name__} has no fast weights, so nothing would outlive its window: "
            "put some in with reverie.hf.insert_fast_weights first"
        )
    plan(decoder.sleeping, config)
    attention = decoder.config._attn_implementation
    if config.eviction == "sliding" and attention not in ("eager", "sdpa"):
        raise UserError(f'eviction "sliding" needs attn_implementation "sdpa" or "eager", got "{attention}"')
    decoder.sleep_config = config
    return model


def install(model: PreTrainedModel) -> None:
    """Make the model read through `reverie.sleep`, with a window that is never full. Again: nothing happens."""
    if isinstance(model, SleepingCausalLM):
        return
    decoder = decoder_of(model)
    layers = check_decoder(model, decoder)
    blocks = DecoderBlocks(decoder, layers)
    shared = InDecoder(blocks.attends)
    for index, layer in enumerate(layers):
        _mix_in(layer, SleepingBlock)
        layer.index, layer.in_decoder = index, shared
    _mix_in(decoder, SleepingDecoder)
    decoder.__dict__["sleeping"] = blocks  # no submodule: it holds the decoder itself
    decoder.sleep_config, decoder.backward_config, decoder.newest_only = AWAKE, EXACT, False
    _mix_in(model, SleepingCausalLM)


def _mix_in(module: nn.Module, mixin: type) -> None:
    """Its class becomes a subclass of the same name, which transformers writes into files and looks up."""
    base = type(module)

    @wraps(base.forward)  # generate() and Trainer look at its signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return mixin.forward(self, *args, **kwargs)

    module.__class__ = type(base.__name__, (mixin, base), {"__module__": base.__module__, "forward": forward})


class SleepingDecoder(nn.Module):
    """Mixed in front of a decoder's class."""

    config: PretrainedConfig
    sleeping: DecoderBlocks
    sleep_config: SleepConfig
    backward_config: Backward
    newest_only: bool  # while a call runs that reads the newest token's logits alone

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        if isinstance(past_key_values, StateCache):
            given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "position_ids": position_ids}
            return super().forward(past_key_values=past_key_values, use_cache=use_cache, **given, **kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("give either input_ids or inputs_embeds")
        _refuse_recording(self, kwargs)
        tokens = inputs_embeds if input_ids is None else input_ids
        cache = _cache(past_key_values, attention_mask, tokens, Context.empty(self.sleeping))
        if cache.seen == 0:
            _refuse_packing(position_ids, cache)
        h = self._read(tokens, cache)
        output = self.sleeping.norm(h[:, -1:].detach())  # for what this decoder calls its output
        output["last_hidden_state"] = h
        output["past_key_values"] = cache if (self.config.use_cache if use_cache is None else use_cache) else None
        return output

    def _read(self, tokens: Tensor, cache: SleepCache) -> Tensor:
        """Final h [B, T, D] of the tokens, [B, 1, D] under `newest_only`; 0 on padding. Moves the cache on."""
        outputs, groups = list[Tensor](), list[Group]()
        for rows, padding, context in cache.groups:
            new = tokens[:, max(padding - cache.seen, 0) :]
            h, context = read(
                self.sleeping,
                new if len(rows) == len(tokens) else new.index_select(0, rows),
                context,
                self.sleep_config,
                newest_only=self.newest_only,
                backward=self.backward_config,
            )
            outputs.append(h)
            groups.append(Group(rows, padding, context))
        cache.groups, cache.seen = groups, cache.seen + tokens.shape[1]
        return _side_by_side(outputs, groups, 1 if self.newest_only else tokens.shape[1])


def _side_by_side(outputs: list[Tensor], groups: list[Group], T: int) -> Tensor:
    """[B, T, D] from what groups of rows gave for their newest tokens; 0 in front of those."""
    if len(outputs) == 1:
        return nn.functional.pad(outputs[0], (0, 0, T - outputs[0].shape[1], 0))
    padded = torch.cat([nn.functional.pad(h, (0, 0, T - h.shape[1], 0)) for h in outputs])
    return padded[torch.cat([group.rows for group in groups]).argsort()]


class SleepingCausalLM(nn.Module):
    """Mixed in front of a causal language model's class."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        decoder = decoder_of(self)
        decoder.newest_only = kwargs.get("labels") is None and _is_one(kwargs.get("logits_to_keep"))
        try:
            return super().forward(*args, **kwargs)
        finally:
            decoder.newest_only = False

    @property
    def sleep_config(self) -> SleepConfig:
        return decoder_of(self).sleep_config

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Windows and passes are made again in the backward pass; layer by layer would lose their states."""
        decoder_of(self).backward_config = Backward(activation_checkpoint="window")

    def gradient_checkpointing_disable(self) -> None:
        decoder_of(self).backward_config = EXACT

    @property
    def is_gradient_checkpointing(self) -> bool:
        return decoder_of(self).backward_config != EXACT


def _cache(past: Any, mask: Tensor | None, tokens: Tensor, empty: Context) -> SleepCache:
    """What these tokens go on from."""
    if isinstance(past, SleepCache) and past.seen:
        if past.batch_size != len(tokens):
            raise UserError(f"the cache holds {past.batch_size} texts, but these are tokens of {len(tokens)}")
        if not past.complete:
            raise UserError("texts with padding behind them cannot go on: put the padding in front (padding_side left)")
        if mask is not None and tokens.shape[1] > 1 and not bool(mask[:, -tokens.shape[1] :].all()):
            raise UserError("texts that go on must have new tokens in every row: padding belongs in front of the first")
        return past
    if (
        past is not None
        and not isinstance(past, SleepCache)
        and (type(past) is not DynamicCache or past.get_seq_length())
    ):
        raise UserError(f"a sleeping model goes on from the cache that it returned, not from a {type(past).__name__}")
    if mask is not None and mask.ndim != 2:
        raise UserError(f"attention_mask must be [batch, tokens], 0 on padding; got {mask.ndim} dimensions")
    cache = begin(mask, tokens, empty)
    if isinstance(past, SleepCache):  # the caller's own, which has read nothing yet
        past.groups, past.complete = cache.groups, cache.complete
        return past
    return cache


def _refuse_packing(positions: Tensor | None, cache: SleepCache) -> None:
    if positions is None or positions.ndim != 2:
        return
    for rows, padding, _ in cache.groups:
        own = positions[rows if len(positions) > 1 else slice(None), padding:]
        if cache.complete and bool((own.diff(dim=1) != 1).any()):
            raise UserError("position_ids must count up: several texts in one row cannot be told apart asleep")


def _refuse_recording(decoder: PreTrainedModel, kwargs: dict[str, Any]) -> None:
    for name in ("output_hidden_states", "output_attentions", "output_router_logits"):
        wanted = kwargs.get(name)
        if getattr(decoder.config, name, False) if wanted is None else wanted:
            raise UserError(f"a model that sleeps runs its blocks in several passes, so there is no single {name[7:]}")


def _is_one(value: Any) -> bool:
    return isinstance(value, int) and value == 1
