"""The model of a recipe."""

from reverie.model import HybridConfig, LanguageModel, new_model
from reverie.pretrained.config import PretrainedModelConfig


def build_model(config: HybridConfig | PretrainedModelConfig, seed: int) -> LanguageModel:
    """The model, whose parameters are drawn from `seed` where they are not pretrained."""
    if isinstance(config, HybridConfig):
        return new_model(config, seed)
    from reverie.hf.adapt import pretrained_lm  # transformers is an extra

    return pretrained_lm(config, seed)
