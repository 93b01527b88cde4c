"""The model of a recipe."""

from __future__ import annotations

from reverie.model import HybridConfig, LanguageModel, new_model
from reverie.pretrained.config import PretrainedModel


def build_model(config: HybridConfig | PretrainedModel, seed: int) -> LanguageModel:
    """With fresh parameters from `seed`, those that are not pretrained."""
    if isinstance(config, HybridConfig):
        return new_model(config, seed)
    from reverie.hf.trainable import pretrained_lm  # transformers is an extra

    return pretrained_lm(config, seed)
