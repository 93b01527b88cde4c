"""reverie: language models that sleep (LLM Sleep, arXiv 2605.26099)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reverie.memory import Memory, MemoryStore, sleep_over
    from reverie.sleep import SleepConfig
    from reverie.talk import load_model

__all__ = ["Memory", "MemoryStore", "SleepConfig", "load_model", "sleep_over"]


def __getattr__(name: str) -> Any:
    """Imported when they are asked for: processes that only make data need no models, which take a second."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = {"SleepConfig": "reverie.sleep", "load_model": "reverie.talk"}
    return getattr(import_module(homes.get(name, "reverie.memory")), name)
