"""Hybrid language models: attention and fast-weight blocks, state in and state out."""

from reverie.model.config import HybridConfig
from reverie.model.hybrid import HybridLM, count_parameters, fast_weight_parameters, new_model
from reverie.model.state import ConvTail, Eviction, KVCache, State, evict

__all__ = [
    "ConvTail",
    "Eviction",
    "HybridConfig",
    "HybridLM",
    "KVCache",
    "State",
    "count_parameters",
    "evict",
    "fast_weight_parameters",
    "new_model",
]
