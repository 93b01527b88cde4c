"""Files that are either the old one or the new one, never half of either."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from reverie.errors import UserError

_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.tmp(\.[^.]*)?")  # as write_atomic names them


def write_atomic(path: str | os.PathLike[str], data: bytes | Callable[[Path], object]) -> None:
    """Put `data` at `path` in one move: a reader, a crash or a full disk never meets an unfinished file.

    `data` is the content, or a function that writes it to the temporary path it is given, which lies in the same
    folder and has the same suffix. Missing folders are made. What the system refuses (a full disk, a missing
    permission) is a `UserError`; then, as after any other error, `path` is as before and the temporary file is gone.
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
            move_into_place(temporary, path)
        finally:
            _remove(temporary)


def remove_unfinished(folder: Path) -> None:
    """Remove what `write_atomic` left in a folder when its process was killed; nobody may be writing there now."""
    for path in folder.glob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            _remove(path)


def move_into_place(finished: Path, path: Path) -> None:
    """Put a finished file at `path`, in the same folder, so that it outlives a power cut."""
    _flush(finished)
    os.replace(finished, path)
    with contextlib.suppress(OSError):  # some file systems cannot; the file itself is in place
        _flush(path.parent)


@contextlib.contextmanager
def locked(path: Path, taken: str, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`, which one process at a time can have. It is made, with its folder, and removed again.

    The system takes the lock back when the process ends, however it does.

    Args:
        taken: what to say where another process still has it after `patience_s` seconds.

    Raises:
        UserError: another process has it, or it cannot be written.
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
    """Makes a `UserError` of what the system refuses meanwhile: `path` cannot be written."""
    try:
        yield
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        raise UserError(f"cannot write {path}: {refusal.strerror or refusal}") from error


def _flush(path: Path) -> None:
    """Make a file, or the names in a folder, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refusal(error: Exception) -> OSError | None:
    """What the system refused, if that is the error; Rust (safetensors) has it in words only."""
    if isinstance(error, OSError):
        return error
    code = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else None


def _remove(temporary: Path) -> None:
    """After a success there is nothing to remove; and a folder that cannot be read must not hide the first error."""
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
