"""Files as users give them, files written whole or not at all, and lock files."""

import contextlib
import errno
import hashlib
import io
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from reverie.errors import UserError

_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.tmp(\.[^.]*)?")  # as write_atomic names them


CACHE = "REVERIE_CACHE"
"""Environment variable: the folder for what is computed once, and may be deleted at any time."""


def cache_folder(kind: str) -> Path:
    """Where files of this kind are cached: frozen beginnings, compiled graphs, readings that were broken off.

    Raises UserError where nobody says where.
    """
    try:
        own = os.environ.get(CACHE)
        return Path(own or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reverie") / kind
    except RuntimeError:
        raise UserError(f"there is no home directory to keep a cache in: set {CACHE} to a folder") from None


def opened(path: str | os.PathLike[str]) -> io.BufferedReader:
    """A file, open for reading. A pipe or a device, which might never end or never answer, is refused.

    Raises OSError where it cannot be read, ValueError for a path with a NUL.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            folder = stat.S_ISDIR(mode)
            reason = os.strerror(errno.EISDIR) if folder else "it is a pipe or a device, and not a file"
            raise OSError(errno.EISDIR if folder else errno.EINVAL, reason, os.fspath(path))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def text_of(data: bytes) -> str:
    """Text in UTF-8, with or without the mark that some editors put before it, its lines ending as everywhere here."""
    return data.decode("utf-8-sig").replace("\r\n", "\n")


def file_hash(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(
    path: str | os.PathLike[str], data: bytes | Callable[[Path], object], *, keep: Path | None = None
) -> None:
    """Write a file atomically: neither a reader nor a crash nor a full disk leaves an unfinished file at `path`.

    Missing folders are made. After an error `path` is as before and the temporary file is removed.

    Args:
        data: the content, or a function that writes it to the temporary path it is given, which is in the same folder
            and has the same suffix.
        keep: where the file that was there before goes, if anywhere.

    Raises:
        UserError: the system refuses to write (a full disk, a missing permission).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(data):
                data(temporary)
            else:
                temporary.write_bytes(data)
            if keep is not None and path.is_file():
                _flush(temporary)
                _keep(path, keep)
            move_into_place(temporary, path)
        finally:
            _remove(temporary)


def remove_unfinished(folder: Path) -> None:
    """Remove temporary files of `write_atomic` whose process was killed. No process may be writing to the folder."""
    for path in folder.glob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            _remove(path)


def move_into_place(finished: Path, path: Path) -> None:
    """Rename `finished` to `path`, in the same folder, synced to disk, so that it survives a power cut."""
    _flush(finished)
    os.replace(finished, path)
    with contextlib.suppress(OSError):  # some file systems cannot; the file itself is in place
        _flush(path.parent)


def _keep(path: Path, keep: Path) -> None:
    """Let `keep` be the file at `path`, which stays there too where the file system knows of files with two names."""
    link = keep.with_name(f".{keep.stem}.{secrets.token_hex(4)}.tmp{keep.suffix}")
    try:
        os.link(path, link)
    except OSError:
        os.replace(path, keep)
    else:
        try:
            os.replace(link, keep)
        finally:
            _remove(link)


@contextlib.contextmanager
def locked(path: Path, taken: str, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`, which one process at a time can have. It is made, with its folder, and removed again.

    The system releases the lock when the process ends, however it ends.

    Args:
        taken: the error's sentence if another process still holds it after `patience_s` seconds.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=patience_s)
        except Timeout:
            raise UserError(taken) from None
    try:
        yield
    finally:
        _remove(path)  # before the release, else it could be the lock of the next process
        lock.release()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the system in the block into a `UserError`: `path` cannot be written, and why."""
    try:
        yield
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        raise UserError(f"cannot write {path}: {refusal.strerror or refusal}") from error


def _flush(path: Path) -> None:
    """`fsync` a file, or a folder with the names in it."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refusal(error: Exception) -> OSError | None:
    """The error of the system, if it is one; safetensors, written in Rust, gives it only in its message."""
    if isinstance(error, OSError):
        return error
    code = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else None


def _remove(temporary: Path) -> None:
    """Remove a file if there is one."""
    with contextlib.suppress(OSError):  # a folder that cannot be read must not hide the first error
        temporary.unlink(missing_ok=True)
