"""`Prefixes`: what was heard, found by the tokens themselves, for clients that send the whole conversation every time.

    CACHE/ROOT/CHAIN.safetensors    a session

ROOT is of what was known before the first token: a model as it sleeps, or one memory. CHAIN is the end of a chain of
hashes over the tokens since, so it is of all of them in order; looking for the longest prefix is asking for one file
after the other. There is no index that could disagree with the files, and a folder may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock

from reverie.serve.files import MEMORY, Held, files_in, make_folder, touch
from reverie.serve.refusal import Refusal
from reverie.serve.sessions import Live, Sessions
from reverie.talk.heard import Heard

_BYTES = 16  # of a hash
_KEPT = 0.9  # when there are too many: counting them takes long, so not every time


def chain(root: str, ids: Sequence[int]) -> list[bytes]:
    """The hash of every prefix of these tokens, the shortest first."""
    link, links = bytes.fromhex(root), list[bytes]()
    for token in ids:
        link = hashlib.sha256(b"%b%d" % (link, token)).digest()[:_BYTES]
        links.append(link)
    return links


def root_of(*parts: str) -> str:
    """Where a chain begins: 32 hex digits for a list of strings."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part.encode()).to_bytes(8, "little") + part.encode())
    return whole.hexdigest()[:32]


class Prefixes:
    """Sessions of one API key by the tokens that were heard.

    Args:
        folder: which only this key's sessions are in.
        most_bytes: of all files; the least recently used are removed.
    """

    def __init__(self, folder: Path, sessions: Sessions, most_bytes: int) -> None:
        self._folder, self._sessions, self._most_bytes = folder, sessions, most_bytes
        self._held = Held(lambda: sum(size for _, _, size in self._files()))

    def known(self, root: str, ids: Sequence[int]) -> tuple[Path, int] | None:
        """The file of the session of the longest proper prefix of these tokens, and its length."""
        folder = self._folder / root
        if not folder.is_dir():
            return None
        links = chain(root, ids[:-1])
        for length in range(len(links), 0, -1):
            if os.path.exists(path := f"{folder}/{links[length - 1].hex()}{MEMORY}"):
                return Path(path), length
        return None

    def get(self, path: Path, *, load: bool = True) -> Live | None:
        """The session in a file that was found; `load` as for `Sessions.get`. None if it is damaged, or was removed."""
        try:
            live = self._sessions.get(path, load=load)
        except Refusal:
            with contextlib.suppress(OSError):  # such as of a disk that is read-only
                self._sessions.delete(path)
            return None
        if live is not None:
            touch(path)
        return live

    def put(self, root: str, ids: Sequence[int], heard: Heard) -> Live | None:
        """Remember a session by the tokens that lead to it from `root`; None where it is known or does not fit."""
        if not ids or not self._most_bytes:
            return None
        path = self._folder / root / f"{chain(root, ids)[-1].hex()}{MEMORY}"
        if path.exists():  # the same tokens, so the same session
            touch(path)
            return None
        try:
            live = self._sessions.put(path, heard)
            self._held.add(live.file_bytes)
            if self._held.bytes > self._most_bytes:
                self._evict()
        except (Refusal, OSError):  # a full disk, or it was removed meanwhile
            return None
        return live

    def forget(self, root: str | None = None) -> None:
        """Remove all sessions, or those that began from `root`."""
        folder = self._folder if root is None else self._folder / root
        for path in folder.rglob(f"*{MEMORY}"):
            self._sessions.delete(path)
        shutil.rmtree(folder, ignore_errors=True)
        self._held.forget()

    def _evict(self) -> None:
        with self._alone():
            files = sorted(self._files())
            excess = sum(size for _, _, size in files) - _KEPT * self._most_bytes
            for _, path, size in files:
                if excess <= 0:
                    break
                self._sessions.delete(path)
                excess -= size
        self._held.forget()

    def _files(self) -> Iterator[tuple[float, Path, int]]:
        with contextlib.suppress(FileNotFoundError):
            for root in self._folder.iterdir():
                if root.is_dir():
                    yield from files_in(root)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time adds up and removes."""
        make_folder(self._folder)
        lock = self._folder.with_name(f".{self._folder.name}.lock")
        with FileLock(lock, mode=0o600):
            yield
