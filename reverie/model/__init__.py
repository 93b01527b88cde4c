"""Hybrid language models of attention and fast-weight blocks, with state in and state out."""

from reverie.model.config import HybridConfig
from reverie.model.hybrid import HybridLM, count_parameters, new_model
from reverie.model.injection import Injection
from reverie.model.language_model import LanguageModel, SleepingModel, numbers
from reverie.model.mixers import register_mixer
from reverie.model.remembers import model_remembers, warn_if_untrained
from reverie.model.state import (
    CACHE_ENTRIES,
    CacheEntry,
    ConvTail,
    Eviction,
    KVCache,
    State,
    Tokens,
    evict,
    fast_weight_change,
    select_rows,
)

__all__ = [
    "CACHE_ENTRIES",
    "CacheEntry",
    "ConvTail",
    "Eviction",
    "HybridConfig",
    "HybridLM",
    "Injection",
    "KVCache",
    "LanguageModel",
    "SleepingModel",
    "State",
    "Tokens",
    "count_parameters",
    "evict",
    "fast_weight_change",
    "model_remembers",
    "new_model",
    "numbers",
    "register_mixer",
    "select_rows",
    "warn_if_untrained",
]
