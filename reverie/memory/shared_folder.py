"""A folder of files that many processes read and write, here or in an object store, through fsspec.

Files are either the old one or the new one. They are named relative to the folder.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
from filelock import FileLock
from fsspec.implementations.local import LocalFileSystem

from reverie.errors import UserError
from reverie.files import move_into_place

_UNFINISHED = re.compile(r"\..*\.(\d+)\.[0-9a-f]{8}\.tmp")  # as `write` names what it has not finished
_STALE_S = 24 * 60 * 60  # by then its writer is gone
_LISTINGS = 20  # tries, while others write and delete


class SharedFolder:
    """A local path, or a URL that fsspec knows, such as s3://bucket/folder.

    Args:
        url: made by the first write.
        options: what fsspec's file system of that protocol takes.

    Everything raises UserError, in one sentence, for what the file system refuses. Only a file that is not there is a
    FileNotFoundError, for the caller knows what was looked for.
    """

    def __init__(self, url: str | os.PathLike[str], options: dict[str, Any]) -> None:
        self.url = os.fspath(url)
        with self._refusals("open", ""):
            self._fs, self._path = fsspec.url_to_fs(self.url, **options)
        self._local = isinstance(self._fs, LocalFileSystem)

    def shown(self, file: str) -> str:
        """A file's path, for people."""
        return f"{self.url.rstrip('/')}/{file}" if file else self.url

    def sizes(self) -> dict[str, int]:
        """Of the files right in the folder, in bytes; none if there is no such folder."""
        self._forget()
        with self._refusals("list", ""):
            files = [file for file in self._listing() if file["type"] != "directory"]
            if any(file["name"] == self._path for file in files):  # fsspec lists a file as the only one in itself
                raise NotADirectoryError(self._path)
        return {posixpath.basename(file["name"]): file["size"] or 0 for file in files}

    def has(self, file: str) -> bool:
        self._forget()
        with contextlib.suppress(FileNotFoundError), self._refusals("read", file):
            return self._fs.info(self._at(file))["type"] != "directory"
        return False

    def read(self, file: str, end: int | None = None) -> bytes:
        """All of it, or what is before byte `end`; of one file, though it be replaced meanwhile."""
        with self._refusals("read", file):
            return self._fs.cat_file(self._at(file), end=end)

    def read_beginnings(self, files: Sequence[str], end: int) -> Sequence[bytes | Exception]:
        """What is before byte `end` of each, at once where the file system can; or what `read` would raise."""
        paths = [self._at(file) for file in files]
        with self._refusals("read", ""):
            found = self._fs.cat_ranges(paths, [0] * len(paths), [end] * len(paths), on_error="return")
        return [
            x if isinstance(x, bytes) else self._error(x, "read", file) for x, file in zip(found, files, strict=True)
        ]

    def written(self, file: str) -> datetime | None:
        """When, UTC; None where the file system does not tell."""
        try:
            when = self._fs.modified(self._at(file))
        except Exception:  # NotImplementedError, or what a backend has of its own
            return None
        return when if when.tzinfo else when.replace(tzinfo=UTC)

    def write(self, file: str, data: bytes) -> None:
        """In one move."""
        unique = f"{int(time.time())}.{secrets.token_hex(4)}"
        temporary, path = self._at(f".{posixpath.basename(file)}.{unique}.tmp"), self._at(file)
        with self._refusals("write", file):
            self._fs.makedirs(posixpath.dirname(path), exist_ok=True)
            try:
                self._fs.pipe_file(temporary, data)
                if self._local:
                    move_into_place(Path(temporary), Path(path))
                else:
                    self._fs.mv(temporary, path)
            except BaseException:
                with contextlib.suppress(Exception):  # often because it is not there
                    self._fs.rm_file(temporary)
                raise

    def remove(self, file: str) -> None:
        with self._refusals("delete", file):
            self._fs.rm_file(self._at(file))

    def remove_unfinished(self) -> None:
        """What killed processes left, long enough ago that nobody can still be writing it."""
        for file in self.sizes():
            unfinished = _UNFINISHED.fullmatch(file)
            if unfinished and time.time() - int(unfinished[1]) > _STALE_S:
                with contextlib.suppress(FileNotFoundError, UserError):  # another process may be faster
                    self.remove(file)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One process at a time, in a local folder, which is made; an object store has no locks."""
        if not self._local:
            yield
            return
        lock = FileLock(self._at(".lock"))
        with self._refusals("write", ""):
            self._fs.makedirs(self._path, exist_ok=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _listing(self) -> Sequence[dict[str, Any]]:
        for _ in range(_LISTINGS):
            try:
                return self._fs.ls(self._path, detail=True)
            except (FileNotFoundError, KeyError):  # no folder; or, for some file systems, a file that went meanwhile
                if not self._fs.isdir(self._path):
                    return []
        return self._fs.ls(self._path, detail=True)

    def _at(self, file: str) -> str:
        return f"{self._path}/{file}"

    def _forget(self) -> None:
        """Listings that fsspec keeps: other processes write as well."""
        self._fs.invalidate_cache(self._path)

    @contextlib.contextmanager
    def _refusals(self, what: str, file: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise self._error(error, what, file) from error

    def _error(self, error: Exception, what: str, file: str) -> UserError | FileNotFoundError:
        """What to raise for an error of any kind, since every backend has kinds of its own."""
        if isinstance(error, FileNotFoundError | KeyError) and what in ("read", "delete"):
            return FileNotFoundError(self.shown(file))
        if isinstance(error, NotADirectoryError | FileExistsError):
            parent = posixpath.dirname(self.shown(file)) if file else self.url
            return UserError(f"cannot {what} {self.shown(file)}: {parent} is a file, not a folder")
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        return UserError(f"cannot {what} {self.shown(file)}: {' '.join(reason.split())}")
