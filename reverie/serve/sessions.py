"""`Sessions`: what was heard, in files and in memory. A file never changes: going on makes another.

A session is what `reverie chat` saves, so either can go on with the other's file. What is in memory is a copy of files,
the most recently used: an id is acknowledged when its file is on the disk.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from reverie.errors import UserError
from reverie.memory.file import read_info
from reverie.memory.memory import Memory
from reverie.serve.files import read_stored, remove, stat_stored, write_private
from reverie.serve.refusal import Refusal
from reverie.sleep import Context
from reverie.talk.heard import Heard
from reverie.talk.sleeper import Sleeper


@dataclass(eq=False)
class Live:
    """A session in memory; the engine fills in `settled`."""

    heard: Heard
    digest: str = ""  # SHA-256 of its file, if it is in one
    file_bytes: int = 0
    settled: tuple[Heard, Context] | None = None
    """The same after sleep, if its window was full, and the context after the tokens awake, read at once: from there
    everything goes on, so that it is the same to the last bit after a restart."""


class OnDisk(Exception):
    """A session is in its file alone."""


class Sessions:
    """Sessions by path, of which the newest are in memory. Safe to use from several threads, and processes.

    Args:
        most_live: sessions in memory.
    """

    def __init__(self, sleeper: Sleeper, most_live: int) -> None:
        self._sleeper, self._most_live = sleeper, most_live
        self._live = OrderedDict[Path, tuple[tuple[int, ...], Live]]()
        self._lock = threading.Lock()

    @property
    def num_live(self) -> int:
        return len(self._live)

    def put(self, path: Path, heard: Heard) -> Live:
        """Write a session to a new file; when this returns it survives a power cut."""
        data = heard.as_memory(self._sleeper.name).to_bytes()
        write_private(path, data)
        live = Live(heard, hashlib.sha256(data).hexdigest(), len(data))
        self._remember(path, live)
        return live

    def get(self, path: Path, *, load: bool = True) -> Live | None:
        """The session in a file, from memory if it is there; None if there is no such file.

        Args:
            load: read the file if need be, for which the model is looked at: it has to be at rest.

        Raises:
            OnDisk: without `load`, if it would have to be read.
            Refusal: the file is damaged, or of another model.
        """
        version = _version(path)
        with self._lock:
            known, live = self._live.get(path, (None, None))
            if live is not None and known == version:
                self._live.move_to_end(path)
                return live
            self._live.pop(path, None)
        if version is None:
            return None
        if not load:
            raise OnDisk
        try:
            data = read_stored(path)
        except OSError:  # removed meanwhile
            return None
        heard = heard_in(data, self._sleeper, f"what is stored as {path.stem}")
        live = Live(heard, hashlib.sha256(data).hexdigest(), len(data))
        self._remember(path, live)
        return live

    def delete(self, path: Path) -> bool:
        """Remove a session from the disk and from memory; False if there was none."""
        found = remove(path)
        with self._lock:
            self._live.pop(path, None)
        return found

    def _remember(self, path: Path, live: Live) -> None:
        version = _version(path)
        with self._lock:
            if version is not None and self._most_live:
                self._live[path] = version, live
                self._live.move_to_end(path)
            while len(self._live) > self._most_live:
                self._live.popitem(last=False)


def heard_in(data: bytes, sleeper: Sleeper, where: str) -> Heard:
    """The session, or the memory, in the bytes of a file; called `where` in sentences. Raises Refusal if it is none."""
    try:
        made = read_info(data, where, size=len(data)).config
        passes = {"num_sleep_passes": made.num_sleep_passes, "tolerance": made.tolerance}
        config = sleeper.sleep_config.model_copy(update=passes)
        memory = Memory.fetch(lambda n: data[:n], sleeper, config, where=where, approximate=sleeper.int8)
        if memory.batch_size != 1:
            raise Refusal(400, f"{where} holds {memory.batch_size} texts, and a session is of one", code="bad_memory")
        return Heard.of(memory)
    except UserError as error:
        raise Refusal(400, str(error), code="bad_memory") from error


def _version(path: Path) -> tuple[int, ...] | None:
    """What tells a file from another of the same name; None if there is none."""
    try:
        found = stat_stored(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
