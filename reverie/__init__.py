"""reverie: language models that sleep (LLM Sleep, arXiv 2605.26099)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reverie.memory import Memory, MemoryStore, sleep_over
    from reverie.sleep import SleepConfig

__all__ = ["Memory", "MemoryStore", "SleepConfig", "sleep_over"]


def __getattr__(name: str) -> Any:
    """Imported when they are asked for: processes that only make data need no models, which take a second."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("reverie.sleep" if name == "SleepConfig" else "reverie.memory"), name)
