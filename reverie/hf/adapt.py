"""Training fast-weight layers: of which parameters, and the model that a recipe asks for."""

from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedModel

from reverie.errors import UserError
from reverie.hf.add import insert_fast_weights, install
from reverie.hf.bases import load_base
from reverie.hf.causal_lm import PretrainedLM
from reverie.hf.decoder import inserted_mixer, inserted_parameters
from reverie.pretrained.config import PretrainedModelConfig


def freeze_pretrained(model: PreTrainedModel) -> None:
    """Let only inserted layers train, for a warm-up (paper section 6.4, stage 1)."""
    new = {id(p) for p in inserted_parameters(model).values()}
    if not new:
        raise UserError(f"{type(model).__name__} has no inserted layers, so nothing would train")
    for p in model.parameters():
        p.requires_grad_(id(p) in new)


def unfreeze(model: PreTrainedModel) -> None:
    """Let all parameters train."""
    model.requires_grad_(True)


def pretrained_lm(config: PretrainedModelConfig, seed: int) -> PretrainedLM:
    """The model of a recipe, with new layers drawn from `seed`.

    Raises:
        UserError: the model cannot be found, or cannot sleep.
    """
    lm = load_base(config.pretrained)
    install(lm)
    if config.after:
        sizes: Any = {"fast_heads": config.fast_heads, "key_size": config.key_size, "value_size": config.value_size}
        insert_fast_weights(lm, config.after, config.kind, **sizes, seed=seed)
    model = PretrainedLM(lm.float())
    for layer in model.layers:
        if (inserted := inserted_mixer(layer)) is not None:
            cast(Any, inserted).mixer.backend = config.backend
    if not model.fast_weight_blocks:
        raise UserError(f"{config.pretrained} has no fast weights: say with model.after where to insert some")
    known = len(cast(Tensor, lm.get_input_embeddings().weight))
    if config.vocab_size > known:
        raise UserError(f"the task has {config.vocab_size} tokens, and {config.pretrained} knows {known}")
    return model
