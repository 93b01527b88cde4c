"""Memories: what a model knows of a text after sleep, as objects to save, share, branch and continue."""

from reverie.memory.file import MemoryInfo, read_info
from reverie.memory.history import History
from reverie.memory.memory import Memory, sleep_over
from reverie.memory.store import MemoryStore, StoreEntry

__all__ = ["History", "Memory", "MemoryInfo", "MemoryStore", "StoreEntry", "read_info", "sleep_over"]
