"""Hybrid language models: attention and fast-weight blocks, state in and state out."""

from reverie.model.config import HybridConfig
from reverie.model.hybrid import HybridLM, count_parameters, new_model
from reverie.model.language_model import LanguageModel
from reverie.model.pretrained import PretrainedModel
from reverie.model.state import CacheEntry, ConvTail, Eviction, KVCache, State, Tokens, evict

__all__ = [
    "CacheEntry",
    "ConvTail",
    "Eviction",
    "HybridConfig",
    "HybridLM",
    "KVCache",
    "LanguageModel",
    "PretrainedModel",
    "State",
    "Tokens",
    "count_parameters",
    "evict",
    "new_model",
]
