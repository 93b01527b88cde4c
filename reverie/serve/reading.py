"""A text that becomes a memory in the background, and goes on where it was after a crash.

READINGS/NAME.text           the text; the reading is wanted as long as it is there
READINGS/NAME.safetensors    what was read of it so far
READINGS/NAME.lock           held by the process that reads
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from jaxtyping import Int
from torch import Tensor

from reverie.errors import UserError
from reverie.memory.memory import Memory
from reverie.serve.files import MEMORY, make_folder, read_stored, remove, write_private
from reverie.serve.refusal import Refusal
from reverie.serve.sessions import heard_in
from reverie.talk.reading import Reading
from reverie.talk.sleeper import Sleeper

TEXT = ".text"
_log = logging.getLogger("reverie.serve")


class ReadingTask:
    """A text that the engine reads in the background.

    Args:
        finish: called with the memory when all is read.

    Raises:
        Timeout: another process reads it.
    """

    def __init__(
        self, sleeper: Sleeper, folder: Path, name: str, tokens: Int[Tensor, " T"], finish: Callable[[Memory], None]
    ) -> None:
        self.name, self.tokens, self.problem = name, len(tokens), ""
        self._folder, self._finish, self._cancelled = folder, finish, False
        self._lock = FileLock(folder / f"{name}.lock", mode=0o600, thread_local=False)
        make_folder(folder)
        self._lock.acquire(timeout=0)
        out, notes = folder / f"{name}{MEMORY}", {"source": name}

        def save(memory: Memory, path: Path) -> None:
            write_private(path, memory.to_bytes())

        begun = None
        with contextlib.suppress(OSError, Refusal):  # none, or damaged, or of another model
            begun = heard_in(read_stored(out), sleeper, name).memory
        try:
            self._reading = Reading(sleeper, tokens, out, notes=notes, memory=begun, save=save)
        except UserError:  # of another text
            self._reading = Reading(sleeper, tokens, out, notes=notes, save=save)

    @property
    def tokens_read(self) -> int:
        return self._reading.done

    @property
    def memory(self) -> Memory:
        """What was read so far; to be looked at where the model is at rest."""
        return self._reading.memory

    @property
    def wanted(self) -> bool:
        """False if it was deleted meanwhile, by any process."""
        return not self._cancelled and (self._folder / f"{self.name}{TEXT}").exists()

    def step(self) -> bool:
        """Read on; True if it is over, one way or the other."""
        if not self.wanted:
            self._clear()
            return True
        try:
            if not self._reading.complete:
                self._reading.step()
                self._reading.save_if_due()
            if self._reading.complete:
                self._finish(self._reading.save())
                self._clear()
        except Exception as error:
            known = isinstance(error, UserError | Refusal)
            self.problem = str(error) if known else "the server has failed"
            _log.warning("a text could not be read", exc_info=not known)
            self._lock.release()
            return True
        if not self.wanted:  # it is done, or was deleted while it was saved
            self._clear()
        return not self.wanted

    def cancel(self) -> None:
        """Nobody wants it any more; to be called where the model is at rest."""
        self._clear()

    def stop(self) -> None:
        """Save what was read, for the next start."""
        with contextlib.suppress(UserError, Refusal):
            if self.wanted and self._reading.done:
                self._reading.save()
        self._lock.release()

    def _clear(self) -> None:
        if self._cancelled:
            return
        self._cancelled = True  # who takes the name from now on has files of the same names
        for suffix in (TEXT, MEMORY, ".lock"):
            remove(self._folder / f"{self.name}{suffix}")
        self._lock.release()
