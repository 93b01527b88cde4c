"""`add_sleep`: a Hugging Face causal language model that sleeps whenever its window is full.

The model keeps its weights, its names and its class's name; `generate`, `Trainer`, peft and `save_pretrained` go on as
before. What changes is how the decoder reads: window by window, through `reverie.sleep.read`.
"""

from __future__ import annotations

import os
from functools import cache, wraps
from pathlib import Path
from types import MethodType
from typing import Any, TypeVar, cast

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from reverie.errors import UserError
from reverie.hf.blocks import DecoderBlocks, InDecoder, InsertConfig, SleepingBlock
from reverie.hf.decoders import check_decoder, decoder_of
from reverie.hf.origin import Origin, origin_of
from reverie.hf.reading import AWAKE, cache_for, read_batch, reads_newest_only, refuse_recording, take_up
from reverie.hf.state import StateCache
from reverie.model import LanguageModel
from reverie.sleep import SleepConfig, plan
from reverie.sleep.gradients import EXACT, Backward

Model = TypeVar("Model", bound=PreTrainedModel)
Mixin = TypeVar("Mixin", bound=nn.Module)


def add_sleep(model: Model, config: SleepConfig) -> Model:
    """Make a causal language model of transformers sleep, in place; again, to change how.

    Args:
        model: a decoder with fast weights of its own, or with inserted ones (`insert_fast_weights`).

    Returns `model`.

    Raises UserError for a model that cannot sleep, or a config that does not fit it.
    """
    install(model)
    decoder = sleeping_decoder(model)
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
    stock = decoder_of(model)
    layers = check_decoder(model, stock)
    origin = origin_of(model)
    blocks = DecoderBlocks(stock, layers)
    shared = InDecoder(blocks.attends)
    for index, layer in enumerate(layers):
        block = _mix_in(layer, SleepingBlock)
        block.index, block.in_decoder = index, shared
    checkpointing = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    if checkpointing:  # of single layers, which would lose their states
        model.gradient_checkpointing_disable()
    decoder = _mix_in(stock, SleepingDecoder)
    decoder.sleeping = blocks
    decoder.sleep_config, decoder.backward_config, decoder.newest_only = AWAKE, EXACT, False
    decoder.inserted_configs = ()
    sleeping = _mix_in(model, SleepingCausalLM)
    sleeping.origin = origin
    if checkpointing:
        sleeping.gradient_checkpointing_enable()


def _mix_in(module: nn.Module, mixin: type[Mixin]) -> Mixin:
    """Its class becomes a subclass of the same name, which transformers writes into files and looks up."""
    module.__class__ = _mixed(type(module), mixin)
    if "_old_forward" in module.__dict__:  # accelerate, which moves inputs between devices, has put itself around it
        module.__dict__["_old_forward"] = MethodType(type(module).forward, module)
    return cast(Mixin, module)


@cache
def _mixed(base: type[nn.Module], mixin: type[nn.Module]) -> type[nn.Module]:
    """One class for all layers of a decoder, or each would be compiled by itself."""

    @wraps(base.forward)  # generate() and Trainer look at its signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return mixin.forward(self, *args, **kwargs)

    return type(base.__name__, (mixin, base), {"__module__": base.__module__, "forward": forward, "stock": base})


class SleepingDecoder(nn.Module):
    """Mixed in front of a decoder's class."""

    config: PretrainedConfig
    layers: nn.ModuleList
    sleeping: DecoderBlocks
    sleep_config: SleepConfig
    backward_config: Backward
    inserted_configs: tuple[InsertConfig, ...]  # a call of insert_fast_weights each
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
        tokens = inputs_embeds if input_ids is None else input_ids
        if tokens is None or (input_ids is not None and inputs_embeds is not None):
            raise UserError("give either input_ids or inputs_embeds")
        refuse_recording(self.config, kwargs)
        blocks = self.sleeping if self.sleeping.decoder is self else DecoderBlocks(self, self.layers)  # a replica's own
        cache = cache_for(past_key_values, attention_mask, tokens, blocks, position_ids)
        h = read_batch(
            blocks,
            tokens,
            cache,
            self.sleep_config,
            newest_only=self.newest_only,
            backward=self.backward_config,
        )
        output = blocks.norm(h[:, -1:].detach())  # for what this decoder calls its output
        output["last_hidden_state"] = h
        output["past_key_values"] = cache if (self.config.use_cache if use_cache is None else use_cache) else None
        return output


def sleeping_decoder(model: nn.Module) -> SleepingDecoder:
    """The decoder of a model on which `install` was."""
    return cast(SleepingDecoder, decoder_of(cast(PreTrainedModel, model)))


class SleepingCausalLM(nn.Module):
    """Mixed in front of a causal language model's class."""

    origin: Origin | None  # of its pretrained part

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        decoder = sleeping_decoder(self)
        take_up(kwargs.get("past_key_values"), self)
        decoder.newest_only = reads_newest_only(kwargs.get("labels"), kwargs.get("logits_to_keep"))
        try:
            return super().forward(*args, **kwargs)
        finally:
            decoder.newest_only = False

    @property
    def sleep_config(self) -> SleepConfig:
        return sleeping_decoder(self).sleep_config

    @property
    def sleeping(self) -> LanguageModel:
        """For `reverie.sleep` and `reverie.memory.memory`, which read and remember without `generate`."""
        from reverie.hf.trainable import PretrainedLM  # which installs, and so imports this file

        # Always the same one, by which its fingerprint is known; in a tuple, since it is no part of this module.
        if "_sleeping" not in self.__dict__:
            self.__dict__["_sleeping"] = (PretrainedLM(cast(PreTrainedModel, self)),)
        return self.__dict__["_sleeping"][0]

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """With how it sleeps and what was inserted, for `reverie.hf.load`; arguments as in transformers."""
        from reverie.hf.saving import save_sleeping  # which loads models, and so imports this file

        save_whole = super().save_pretrained  # pyright: ignore[reportAttributeAccessIssue]
        save_sleeping(self, Path(save_directory), save_whole, *args, **kwargs)

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Windows and passes are made again in the backward pass; layer by layer would lose their states."""
        sleeping_decoder(self).backward_config = Backward(activation_checkpoint="window")

    def gradient_checkpointing_disable(self) -> None:
        sleeping_decoder(self).backward_config = EXACT

    activation_checkpointing_enable, activation_checkpointing_disable = (  # their names from transformers 6 on
        gradient_checkpointing_enable,
        gradient_checkpointing_disable,
    )

    @property
    def is_gradient_checkpointing(self) -> bool:
        return sleeping_decoder(self).backward_config != EXACT
