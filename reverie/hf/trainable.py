"""A sleeping model of transformers as a `LanguageModel`: for recipes, with our optimisers, stages and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from reverie.errors import UserError
from reverie.hf.bases import load_base
from reverie.hf.blocks import inserted_mixer
from reverie.hf.insert import insert_fast_weights, inserted_parameters
from reverie.hf.sleeping import install, sleeping_decoder
from reverie.hf.state import StateCache
from reverie.model import LanguageModel, State, Tokens
from reverie.pretrained.config import PretrainedModel


class PretrainedLM(LanguageModel):
    """`lm` is the model of transformers, which stays what it is."""

    def __init__(self, lm: PreTrainedModel) -> None:
        super().__init__()
        install(lm)
        self.lm = lm

    @property
    def layers(self) -> nn.ModuleList:  # pyright: ignore[reportIncompatibleVariableOverride]
        return sleeping_decoder(self.lm).sleeping.layers

    @property
    def fast_weight_blocks(self) -> Sequence[int]:
        return sleeping_decoder(self.lm).sleeping.fast_weight_blocks

    def fast_weight_parameters(self) -> list[nn.Parameter]:
        """Inserted layers; in a model with fast weights of its own, the blocks that hold them."""
        if any(inserted_mixer(layer) is not None for layer in self.layers):
            return list(inserted_parameters(self.lm).values())
        return [p for i in self.fast_weight_blocks for p in self.layers[i].parameters()]

    def compile_blocks(self, backend: str) -> None:
        sleeping_decoder(self.lm).sleeping.compile(backend)

    def embed(self, tokens: Tokens) -> Tensor:
        return sleeping_decoder(self.lm).sleeping.embed(tokens)

    def blocks(
        self, h: Tensor, state: State, start: int, stop: int, *, span: int, output: bool = True
    ) -> tuple[Tensor, State]:
        return sleeping_decoder(self.lm).sleeping.blocks(h, state, start, stop, span=span, output=output)

    def head(self, h: Tensor) -> Tensor:
        """Logits, by all that the model does behind its last block."""
        flat = h.reshape(1, -1, h.shape[-1])
        end = StateCache(State.empty(self.num_blocks), self.num_blocks, self.num_blocks, flat, 1)
        return self.lm(inputs_embeds=flat, past_key_values=end, use_cache=True).logits.reshape(*h.shape[:-1], -1)


def pretrained_lm(config: PretrainedModel, seed: int) -> PretrainedLM:
    """The model, with new layers drawn from `seed`.

    Raises UserError where the model cannot be found, or cannot sleep.
    """
    lm = load_base(config.pretrained)
    if config.behind:
        insert_fast_weights(
            lm,
            config.behind,
            config.kind,
            heads=config.fast_heads,
            key_size=config.key_size,
            value_size=config.value_size,
            seed=seed,
        )
    model = PretrainedLM(lm.float())
    for layer in model.layers:
        if (inserted := inserted_mixer(layer)) is not None:
            cast(Any, inserted).mixer.backend = config.backend
    if not model.fast_weight_blocks:
        raise UserError(f"{config.pretrained} has no fast weights: say with model.behind where to put some in")
    known = len(cast(Tensor, lm.get_input_embeddings().weight))
    if config.vocab_size > known:
        raise UserError(f"the task has {config.vocab_size} tokens, and {config.pretrained} knows {known}")
    return model
