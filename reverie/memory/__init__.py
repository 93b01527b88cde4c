"""Memories: what sleep made of a text, as a thing to keep, share, branch and go on with."""

from reverie.memory.file import MemoryInfo, read_info
from reverie.memory.history import History
from reverie.memory.memory import Memory, sleep_over
from reverie.memory.store import MemoryStore, StoreEntry

__all__ = [
    "History",
    "Memory",
    "MemoryInfo",
    "MemoryStore",
    "StoreEntry",
    "read_info",
    "sleep_over",
]
