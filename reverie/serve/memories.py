"""`Memories`: memories by name, of one API key: texts that were read, files that were uploaded, branches of either."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from jaxtyping import Int
from torch import Tensor

from reverie.errors import UserError, plain, visible
from reverie.memory.file import read_info
from reverie.memory.memory import Memory
from reverie.serve.engine import Engine
from reverie.serve.files import (
    MEMORY,
    bytes_in,
    checked_name,
    files_in,
    make_folder,
    read_stored,
    remove,
    stat_stored,
    write_private,
)
from reverie.serve.reading import TEXT, ReadingTask
from reverie.serve.refusal import Refusal, not_found
from reverie.serve.sessions import Live, Sessions, heard_in
from reverie.talk.heard import Heard


class Memories:
    """Safe to use from several threads, and processes.

    Args:
        folder: of this key.
    """

    def __init__(self, folder: Path, engine: Engine, sessions: Sessions) -> None:
        self._folder, self._readings = folder / "memories", folder / "readings"
        self._engine, self._sessions, self._limits = engine, sessions, engine.limits
        self._tasks = dict[str, ReadingTask]()
        self._unread = set[str]()  # texts with which reading cannot begin
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Of all that are there, read to their end or not."""
        ready = {path.name.removesuffix(MEMORY) for _, path, _ in files_in(self._folder)}
        return sorted(ready | {path.name.removesuffix(TEXT) for _, path, _ in files_in(self._readings, TEXT)})

    def info(self, name: str) -> dict[str, Any]:
        """What is told of one. Raises Refusal if it is not there."""
        path, reading = self._path(name), self._text(name).exists()  # before it is looked for: it may be done now
        task = self._tasks.get(name)
        try:
            about, info = stat_stored(path), read_info(path)
        except (OSError, UserError):
            if reading:
                return {"object": "memory", "name": name, **self._progress(name, task)}
            if os.path.lexists(path):
                raise Refusal(400, f"{name} is damaged: delete it", param="name", code="bad_memory") from None
            raise not_found(f"memory {name}", param="name") from None
        notes = info.notes
        return {
            "object": "memory",
            "name": name,
            "status": "ready",
            "tokens": sum(info.tokens),
            "passes": sum(info.passes),
            "bytes": info.nbytes,
            "file_bytes": about.st_size,
            "created": int(about.st_mtime),
            "turns": int(turns) if (turns := notes.get("turns", "0")).isdecimal() else 0,
            "source": visible(notes.get("source", ""))[:200],
            "model": plain(notes.get("model", ""))[:200],
        }

    def __contains__(self, name: str) -> bool:
        """True if it is there, and read to its end."""
        return self._path(name).exists()

    def get(self, name: str, *, load: bool = True) -> Live:
        """`load` as for `Sessions.get`. Raises Refusal if it is not there, or not read to its end."""
        reading = self._text(name).exists()
        live = self._sessions.get(self._path(name), load=load)
        if live is None:
            if reading:
                raise Refusal(409, f"{name} is still being read", param="name", code="not_ready")
            raise not_found(f"memory {name}", param="name")
        return live

    def heard(self, name: str) -> Heard:
        """What is in one, or is by now in one that is being read; to be called where the model is at rest.

        Raises Refusal if it is not there, or another process reads it.
        """
        task = self._tasks.get(name)
        return self.get(name).heard if task is None else Heard(task.memory)

    def data(self, name: str) -> bytes:
        """The bytes of its file. Raises Refusal if it is not there."""
        try:
            return read_stored(self._path(name))
        except OSError:
            self.info(name)  # which says why
            raise Refusal(409, f"{name} is still being read", param="name", code="not_ready") from None

    def put(self, name: str, heard: Heard) -> None:
        """Store what was heard under a new name."""
        with self._new(name) as path:
            self._sessions.put(path, heard)

    def upload(self, name: str, data: bytes) -> None:
        """Store the file of a memory, which is checked; to be called where the model is at rest."""
        heard = heard_in(data, self._engine.sleeper, "the file")
        passes, most = heard.memory.config.num_sleep_passes, self._limits.passes
        if passes > max(most, self._engine.sleeper.sleep_config.num_sleep_passes):
            raise Refusal(400, f"the file asks for {passes:,} passes a sleep, more than {most}", code="bad_memory")
        if max(heard.awake, default=0) >= self._engine.vocab_size:
            raise Refusal(400, "the file holds token ids that the model does not know", code="bad_memory")
        self.put(name, heard)

    def read(self, name: str, text: str, tokens: Int[Tensor, " T"]) -> None:
        """Read a text in the background into a memory of a new name."""
        with self._new(name):
            if len(files_in(self._readings, TEXT)) >= self._limits.readings:
                sentence = f"{self._limits.readings} texts are being read: wait for one of them"
                raise Refusal(429, sentence, code="too_many_readings", retry_after_s=10)
            write_private(self._text(name), text.encode())
            try:
                self._begin(name, tokens)
            except Timeout:  # another process has not noticed yet that the one before it was deleted
                remove(self._text(name))
                raise Refusal(409, f"{name} is being deleted: try again", param="name", code="name_taken") from None
            except (OSError, Refusal):  # a full disk
                remove(self._text(name))
                raise

    def resume(self) -> None:
        """Go on with texts that were being read when a server ended, and which nobody else reads now."""
        for _, path, _ in files_in(self._readings, TEXT):
            name = path.name.removesuffix(TEXT)
            with contextlib.suppress(Timeout):
                try:
                    self._begin(name, self._engine.sleeper.text(read_stored(path).decode()))
                except (OSError, ValueError, Refusal):  # damaged, or the disk is full
                    self._unread.add(name)

    def delete(self, name: str) -> str | None:
        """Delete one, and what was read of it; the digest of its file, if it had one. Raises Refusal if none is.

        To be called where the model is at rest, so that it is not being read at the moment.
        """
        path, text = self._path(name), self._text(name)
        digest = None
        with contextlib.suppress(OSError):  # it is not read to its end
            digest = hashlib.sha256(read_stored(path)).hexdigest()
        found = os.path.lexists(text)
        self._unread.discard(name)
        if (task := self._tasks.pop(name, None)) is not None:
            task.cancel()
        for part in (text, text.with_name(f"{name}{MEMORY}")):  # of another process, which notices
            remove(part)
        if not self._sessions.delete(path) and not found:
            raise not_found(f"memory {name}", param="name")
        return digest

    def _begin(self, name: str, tokens: Int[Tensor, " T"]) -> None:
        def finish(memory: Memory) -> None:
            path = self._path(name)
            self._sessions.put(path, Heard.of(memory))
            if not task.wanted:  # deleted while it was written
                self._sessions.delete(path)
            self._tasks.pop(name, None)

        task = ReadingTask(self._engine.sleeper, self._readings, name, tokens, finish)
        self._tasks[name] = task
        self._engine.background(task)

    def _progress(self, name: str, task: ReadingTask | None) -> dict[str, Any]:
        if task is not None:
            status = {"status": "failed", "problem": task.problem} if task.problem else {"status": "reading"}
            return {**status, "tokens": task.tokens, "tokens_read": task.tokens_read}
        if name in self._unread:
            return {"status": "failed", "problem": "its text cannot be read: delete it", "tokens": None}
        read = 0
        with contextlib.suppress(OSError, UserError):  # another process reads it, and has not saved yet
            read = sum(read_info(self._readings / f"{name}{MEMORY}").tokens)
        return {"status": "reading", "tokens": None, "tokens_read": read}

    @contextlib.contextmanager
    def _new(self, name: str) -> Iterator[Path]:
        """The path of a new memory, whose name nobody else can take meanwhile. Raises Refusal if it is taken."""
        path = self._path(name)
        make_folder(self._folder)
        with self._lock, FileLock(self._folder / ".lock", mode=0o600):
            if path.exists() or self._text(name).exists():
                raise Refusal(409, f"there is a memory {name} already", param="name", code="name_taken")
            if len(self.names()) >= self._limits.memories:
                raise Refusal(429, f"there are {self._limits.memories} memories: delete some", code="too_many_memories")
            if bytes_in(self._folder) >= self._limits.stored_bytes:
                raise Refusal(429, "the memories take all the room there is: delete some", code="storage_full")
            yield path

    def _path(self, name: str) -> Path:
        return self._folder / f"{checked_name(name)}{MEMORY}"

    def _text(self, name: str) -> Path:
        return self._readings / f"{checked_name(name)}{TEXT}"
