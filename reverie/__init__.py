"""reverie: language models that sleep (LLM Sleep, arXiv 2605.26099)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reverie.memory import Memory, MemoryStore, sleep_over
    from reverie.model import HybridConfig, HybridLM, model_remembers, new_model, register_mixer
    from reverie.sleep import Context, SleepConfig, consolidate, read, rollout
    from reverie.talk import load_model
    from reverie.tasks import register_task

_ROOMS = {
    "Context": "sleep",
    "HybridConfig": "model",
    "HybridLM": "model",
    "Memory": "memory",
    "MemoryStore": "memory",
    "SleepConfig": "sleep",
    "consolidate": "sleep",
    "load_model": "talk",
    "model_remembers": "model",
    "new_model": "model",
    "read": "sleep",
    "register_mixer": "model",
    "register_task": "tasks",
    "rollout": "sleep",
    "sleep_over": "memory",
}

__all__ = [
    "Context",
    "HybridConfig",
    "HybridLM",
    "Memory",
    "MemoryStore",
    "SleepConfig",
    "consolidate",
    "load_model",
    "model_remembers",
    "new_model",
    "read",
    "register_mixer",
    "register_task",
    "rollout",
    "sleep_over",
]


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: processes that only make data need no models."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
