"""One process at a time in the folder of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from reverie.errors import UserError
from reverie.files import remove_unfinished, writing

LOCK_NAME = ".lock"
PATIENCE_S = 2.0  # processes that made data for a killed run hold its lock until they notice


@contextlib.contextmanager
def run_lock(out: Path) -> Iterator[None]:
    """The folder, made if it is missing, for this process alone, and without what a killed one left half-written.

    The system takes the lock back when the process ends, however it does.

    Raises:
        UserError: another process has it, or nothing can be written there.
    """
    path = out / LOCK_NAME
    with writing(path):
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=PATIENCE_S)
        except Timeout:
            raise UserError(f"another process is training in {out}: wait for it, or choose another --out") from None
    try:
        remove_unfinished(out)
        yield
    finally:
        with contextlib.suppress(OSError):  # before the release, else it could be the lock of the next process
            path.unlink()
        lock.release()
