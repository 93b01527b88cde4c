"""One process at a time in the folder of a run."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from reverie.files import locked, remove_unfinished

LOCK_NAME = ".lock"
PATIENCE_S = 2.0  # processes that made data for a killed run hold its lock until they notice


@contextlib.contextmanager
def run_lock(out: Path) -> Iterator[None]:
    """The folder, made if it is missing, for this process alone, and without what a killed one left half-written.

    Raises:
        UserError: another process has it, or nothing can be written there.
    """
    taken = f"another process is training in {out}: wait for it, or choose another folder"
    with locked(out / LOCK_NAME, taken, PATIENCE_S):
        remove_unfinished(out)
        yield
