"""A causal language model of transformers that sleeps, and the same as a `LanguageModel` of ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from reverie.hf.arguments import BY_CAUSAL_LM, by_name, requested
from reverie.hf.blocks import inserted_mixer, inserted_parameters
from reverie.hf.decoder import DecoderBlocks, Finished, SleepingDecoder, sleeping_decoder
from reverie.hf.reading import SleepingMixin, take_up
from reverie.hf.save import Origin, save_sleeping
from reverie.model import LanguageModel, warn_if_untrained
from reverie.sleep import SleepConfig
from reverie.sleep.gradients import Backward


class SleepingCausalLM(SleepingMixin, nn.Module):
    """Mixed in before a causal language model's class."""

    stock: type[nn.Module]
    origin: Origin | None  # of its pretrained part

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        kwargs = by_name(self.stock.forward, args, kwargs)
        past = kwargs.get("past_key_values")
        decoder = sleeping_decoder(self)
        if not isinstance(past, Finished):
            take_up(past, self)
            request = requested(decoder.sleeping, decoder.config, kwargs, BY_CAUSAL_LM)
            kwargs |= {"past_key_values": request, "labels": request.labels}
        return super().forward(**kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; with a warning where nothing that sleep leaves reaches what is written."""
        warn_if_untrained(self, stacklevel=2)
        return super().generate(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def sleep_config(self) -> SleepConfig:
        return sleeping_decoder(self).sleep_config

    @property
    def sleeping(self) -> PretrainedLM:
        """The model as `reverie.sleep` and `reverie.memory` take it, which read and remember without `generate`."""
        # Always the same one, by which its fingerprint is known; in a tuple, since it is no part of this module.
        if "_sleeping" not in self.__dict__:
            self.__dict__.setdefault("_sleeping", (PretrainedLM(cast(PreTrainedModel, self)),))
        return self.__dict__["_sleeping"][0]

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save the model, how it sleeps and what was inserted, for `reverie.hf.load`; arguments as in transformers."""
        save_whole = super().save_pretrained  # pyright: ignore[reportAttributeAccessIssue]
        save_sleeping(self, Path(save_directory), save_whole, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Without what `sleeping` keeps: a copy has its own."""
        return {key: x for key, x in super().__getstate__().items() if key != "_sleeping"}

    @property
    def backward_config(self) -> Backward:  # pyright: ignore[reportIncompatibleVariableOverride]
        return sleeping_decoder(self).backward_config

    @backward_config.setter
    def backward_config(self, config: Backward) -> None:
        sleeping_decoder(self).backward_config = config


class PretrainedLM(DecoderBlocks, LanguageModel):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A model of transformers that can sleep (`add.install`) as a `LanguageModel`; `lm` is that model, as it is."""

    def __init__(self, lm: PreTrainedModel) -> None:
        LanguageModel.__init__(self)
        self.lm = lm

    @property
    def decoder(self) -> SleepingDecoder:  # pyright: ignore[reportIncompatibleVariableOverride]
        return sleeping_decoder(self.lm)

    def fast_weight_parameters(self) -> list[nn.Parameter]:
        """Those of inserted layers; in a model with fast weights of its own, those of the blocks that hold them."""
        if any(inserted_mixer(layer) is not None for layer in self.layers):
            return list(inserted_parameters(self.lm).values())
        return [p for i in self.fast_weight_blocks for p in self.layers[i].parameters()]

    def head(self, h: Tensor) -> Tensor:
        """Logits, by all that the model does after its last block."""
        return self.unembed(super().head(h))

    def unembed(self, final: Tensor) -> Tensor:
        """Logits of h after the final norm: the head's, scaled and capped as the model does it."""
        h = final.reshape(1, -1, final.shape[-1])
        return self.lm(inputs_embeds=h, past_key_values=Finished(h), use_cache=True).logits.reshape(
            *final.shape[:-1], -1
        )
