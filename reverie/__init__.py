"""reverie: language models that sleep (LLM Sleep, arXiv 2605.26099)."""

from reverie.memory import Memory, MemoryStore, sleep_over
from reverie.sleep import SleepConfig

__all__ = ["Memory", "MemoryStore", "SleepConfig", "sleep_over"]
