"""A folder that many processes read and write, local or in an object store, through fsspec.

Files are named relative to the folder and written atomically.
"""

import contextlib
import os
import posixpath
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import fsspec
from filelock import FileLock
from fsspec import AbstractFileSystem
from fsspec.archive import AbstractArchiveFileSystem
from fsspec.dircache import DirCache
from fsspec.implementations.cached import CachingFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from reverie.errors import UserError
from reverie.files import move_into_place

_UNFINISHED = re.compile(r"\..*\.(\d+)\.[0-9a-f]{8}\.tmp")  # as `write` names temporary files; the number is Unix time
_STALE_S = 24 * 60 * 60  # age of a temporary file after which its writer is taken to be dead
_NO_FILES = ("directory", "other")  # other: pipes and devices
_LISTINGS = 20  # attempts at listing, while others write and delete

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
_EXTRAS |= {"http": "http", "https": "http"}
"""Extras of reverie with the packages that a protocol needs."""


class SharedFolder:
    """A folder, given as a local path or a URL that fsspec knows, such as s3://bucket/folder.

    Args:
        url: the folder, which the first write makes.
        options: keyword arguments of fsspec's file system for that protocol.

    Raises:
        UserError: by all methods, if the file system refuses. Only for a missing file they raise FileNotFoundError,
            since the caller knows what it was looking for.
    """

    def __init__(self, url: str | os.PathLike[str], options: dict[str, Any]) -> None:
        self.url = os.fspath(url)
        with self._refusals("open", ""):
            self._fs, self._path = _open(self.url, options)
        self._local = isinstance(self._fs, LocalFileSystem)

    def shown(self, file: str) -> str:
        """A file's path, for messages."""
        return f"{self.url.rstrip('/')}/{file}" if file else self.url

    def sizes(self) -> dict[str, int]:
        """Sizes in bytes of the files in the folder, without subfolders; {} if there is no such folder."""
        with self._refusals("list", ""):
            files = [file for file in self._listing() if file["type"] not in _NO_FILES]
            if any(file["name"] == self._path for file in files):  # fsspec lists a file as the only one in itself
                raise NotADirectoryError(self._path)
            # A web server's pages name files without their sizes.
            sizes = [self._fs.size(file["name"]) if file["size"] is None else file["size"] for file in files]
        return {posixpath.basename(file["name"]): size or 0 for file, size in zip(files, sizes, strict=True)}

    def has(self, file: str) -> bool:
        with contextlib.suppress(FileNotFoundError), self._refusals("read", file):
            self._forget()
            return self._fs.info(self._at(file))["type"] not in _NO_FILES
        return False

    def read(self, file: str, end: int | None = None) -> bytes:
        """Read a file, or its bytes before `end`; all from one version, even if the file is replaced meanwhile."""
        with self._refusals("read", file):
            self._forget()
            if self._local and self._fs.info(self._at(file))["type"] == "other":
                raise OSError("it is a pipe or a device, and not a file")
            return cast(bytes, self._fs.cat_file(self._at(file), end=end))

    def read_beginnings(self, files: Sequence[str], end: int) -> Sequence[bytes | Exception]:
        """Read the bytes before `end` of each file, concurrently if possible; or return what `read` would raise."""
        paths = [self._at(file) for file in files]
        with self._refusals("read", ""):
            self._forget()
            found = self._fs.cat_ranges(paths, [0] * len(paths), [end] * len(paths), on_error="return")
        return [
            x if isinstance(x, bytes) else self._error(x, "read", file) for x, file in zip(found, files, strict=True)
        ]

    def written(self, file: str) -> datetime | None:
        """Time of the last write, UTC; None if the file system does not tell."""
        try:
            when = self._fs.modified(self._at(file))
        except Exception:  # NotImplementedError, or what a backend has of its own
            return None
        return when if when.tzinfo else when.replace(tzinfo=UTC)

    def write(self, file: str, data: bytes) -> None:
        """Write a file atomically."""
        unique = f"{int(time.time())}.{secrets.token_hex(4)}"
        temporary, path = self._at(f".{posixpath.basename(file)}.{unique}.tmp"), self._at(file)
        with self._refusals("write", file):
            if "http" in self._fs.protocol:  # a PUT would leave its file, which nothing could move or delete
                raise OSError("a web server's files can only be read")
            self._fs.makedirs(posixpath.dirname(path), exist_ok=True)
            try:
                self._fs.pipe_file(temporary, data)
                if self._local:
                    move_into_place(Path(temporary), Path(path))
                else:
                    self._move(temporary, path)
            except BaseException:
                with contextlib.suppress(Exception):  # often because it is not there
                    self._fs.rm_file(temporary)
                raise

    def remove(self, file: str) -> None:
        with self._refusals("delete", file):
            self._fs.rm_file(self._at(file))

    def remove_unfinished(self) -> None:
        """Delete temporary files of killed processes, once they are `_STALE_S` seconds old."""
        for file in self.sizes():
            unfinished = _UNFINISHED.fullmatch(file)
            if unfinished and time.time() - int(unfinished[1]) > _STALE_S:
                with contextlib.suppress(FileNotFoundError, UserError):  # another process may be faster
                    self.remove(file)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock of a local folder, which is made if absent; in an object store there is none."""
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

    def _move(self, temporary: str, path: str) -> None:
        """Give a finished file its name. fsspec's own `mv` would take * ? and [] in a folder's name for a pattern."""
        if type(self._fs).mv is AbstractFileSystem.mv:
            self._fs.cp_file(temporary, path)
            self._fs.rm_file(temporary)
            return
        self._fs.mv(temporary, path)
        self._forget()
        if self._fs.exists(temporary):  # such as HDFS, which neither replaces a file nor says so
            raise OSError("its file system does not replace a file by another")

    def _forget(self) -> None:
        """Forget what the file system remembers of listings: other processes write as well."""
        self._fs.invalidate_cache(self._path)

    def _listing(self) -> Sequence[dict[str, Any]]:
        for _ in range(_LISTINGS):
            self._forget()
            try:
                return self._fs.ls(self._path, detail=True)
            except (FileNotFoundError, KeyError):  # no folder; or, in some file systems, a file was deleted meanwhile
                if not self._fs.isdir(self._path):
                    return []
        return self._fs.ls(self._path, detail=True)

    def _at(self, file: str) -> str:
        return f"{self._path}/{file}"

    @contextlib.contextmanager
    def _refusals(self, what: str, file: str) -> Iterator[None]:
        """Turn errors of the file system in the block into those that `SharedFolder` raises."""
        try:
            yield
        except Exception as error:
            raise self._error(error, what, file) from error

    def _error(self, error: Exception, what: str, file: str) -> UserError | FileNotFoundError:
        """The error to raise for one of any type, since every backend has its own types."""
        if isinstance(error, UserError):
            return error
        if isinstance(error, FileNotFoundError | KeyError) and what in ("read", "delete"):
            return FileNotFoundError(self.shown(file))
        if isinstance(error, NotADirectoryError | FileExistsError):
            parent = posixpath.dirname(self.shown(file)) if file else self.url
            return UserError(f"cannot {what} {self.shown(file)}: {parent} is a file, not a folder")
        if isinstance(error, NotImplementedError):
            return UserError(f"cannot {what} {self.shown(file)}: its file system has no way to")
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        return UserError(f"cannot {what} {self.shown(file)}: {' '.join(reason.split())}")


def _open(url: str, options: dict[str, Any]) -> tuple[AbstractFileSystem, str]:
    """The file system that a URL names, which remembers no listings, and the path in it.

    Raises:
        UserError: it would hand out copies that it has made earlier, or a package is missing.
    """
    protocols = [part.partition("://")[0] for part in url.split("::") if "://" in part or "::" in url]
    try:
        for protocol in protocols:
            _refuse_copies(url, protocol)
        fs, path = cast(tuple[Any, str], fsspec.url_to_fs(url, skip_instance_cache=True, **options))
    except ImportError as error:
        extra = next((_EXTRAS[protocol] for protocol in protocols if protocol in _EXTRAS), None)
        if extra is None:
            raise
        raise UserError(f"cannot open {url}: {error}; run pip install 'reverie[{extra}]'") from error
    while isinstance(fs, DirFileSystem):
        fs, path = fs.fs, str(fs._join(path))
    if isinstance(listings := getattr(fs, "dircache", None), DirCache):
        listings.clear()
        listings.use_listings_cache = False
    return fs, path


def _refuse_copies(url: str, protocol: str) -> None:
    """Raises UserError for a protocol whose file systems answer from a copy of what they have seen."""
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError):
        return  # which opening it tells
    rest = url.partition(f"{protocol}::")[2]
    instead = f": give {rest}" if rest else ""
    if issubclass(kind, CachingFileSystem):
        raise UserError(f"{protocol} keeps copies of files, from which a store would return old memories{instead}")
    if issubclass(kind, AbstractArchiveFileSystem) or protocol == "reference":
        raise UserError(f"{protocol} lists its files once, and those of a store change: give a folder that holds them")
