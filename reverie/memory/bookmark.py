"""What was read of a text so far, on disk: when it is saved, and where by a command that writes no memory of its own.

At most `MOST_LOST_S` seconds of reading are lost to a power cut, or a window and its saving where these take longer.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Int
from torch import Tensor

from reverie.errors import UserError
from reverie.files import cache_folder
from reverie.memory.memory import Memory
from reverie.sleep import Context, SleepConfig

MOST_LOST_S = 10.0
SAVING_SHARE = 0.1  # of the time, at most: what takes seconds to save is saved less often
_MOST_FILES = 16  # that are kept in the folder of bookmarks, the newest


class Pace:
    """When to save: at the edge of a window, if the next one might end later than `MOST_LOST_S` after the last save.

    Args:
        at_once: after the first window too, which shows whether the place can be written.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self._edge = time.monotonic()
        self._saved, self._cost_s = -math.inf if at_once else self._edge, 0.0

    def due(self) -> bool:
        """Whether to save now; asked once after each window."""
        now = time.monotonic()
        window_s, self._edge = now - self._edge, now
        waited_s = now - self._saved
        return waited_s + window_s > MOST_LOST_S and waited_s > self._cost_s * (1 / SAVING_SHARE - 1)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Around every save, which is timed."""
        begun = time.monotonic()
        yield
        self._saved = self._edge = time.monotonic()
        self._cost_s = self._saved - begun


def bookmark_folder() -> Path | None:
    """Where `Bookmark` keeps what was read, in the user's folder of caches; None for a user without a home."""
    try:
        return cache_folder("readings")
    except UserError:
        return None


class Bookmark:
    """The reading of one text by one model, which goes on where it was broken off; the file is gone when it is done.

    As a context: an interruption saves what was read, and gets a note that says where.

    Args:
        model: as for `sleep_over`.
        tokens: of the whole text, which has to be the same to go on.
        folder: may be deleted at any time; None keeps nothing.
        tell: gets a sentence where reading goes on, and where nothing can be kept.
    """

    def __init__(
        self,
        model: object,
        tokens: Int[Tensor, "1 T"],
        config: SleepConfig,
        folder: Path | None,
        tell: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self._model, self._config, self._folder, self._tell = model, config, folder, tell
        words = tokens.cpu().to(torch.int64).numpy().astype("<i8").tobytes()
        self._text = hashlib.sha256(config.model_dump_json().encode() + words).hexdigest()[:32]
        self._tokens, self._read, self._kept = tokens.shape[1], 0, 0
        self._context: Context | None = None
        self._path: Path | None = None
        self._pace = Pace()

    def find(self) -> tuple[Context, int] | None:
        """What an earlier reading of this text by this model has left, and how many tokens it had read."""
        if self._folder is None or not any(self._folder.glob(f"{self._text}-*")):
            return None
        empty = Memory.empty(self._model, self._config)
        try:
            memory = Memory.load(self._place(empty), self._model, self._config)
        except UserError:  # of another model, or damaged
            return None
        read = int(memory.tokens[0])
        if memory.batch_size != 1 or not 0 < read < self._tokens or read % self._config.window_size:
            return None
        self._read = self._kept = read
        self._path = self._place(empty)
        self._tell(f"goes on after {self._counts()}, read before and kept in {self._path}")
        return memory.context, self._read

    def reached(self, read: int, context: Context) -> None:
        """Note that so many tokens are read and slept over; saved when it is time."""
        self._read, self._context = read, context
        if self._pace.due():
            self._save()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._save()
            if self._kept:
                error.add_note(f"the same text goes on after {self._counts()}, kept in {self._path}")
        elif error is None and self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _save(self) -> None:
        if self._folder is None or self._context is None or self._read == self._kept:
            return
        with self._pace.saving():
            empty = Memory.empty(self._model, self._config)
            memory = replace(empty, context=self._context, tokens=torch.full_like(empty.tokens, self._read))
            path = self._place(memory)
            try:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # it is what somebody reads
                memory.save(path)
            except (UserError, OSError) as error:
                self._tell(f"what was read is not kept: {error}")
                self._folder = None
                return
            self._path, self._kept = path, self._read
            _remove_old(self._folder)

    def _place(self, memory: Memory) -> Path:
        assert self._folder is not None
        return self._folder / f"{self._text}-{memory.fingerprint[:8]}.safetensors"

    def _counts(self) -> str:
        return f"{self._kept:,} of {self._tokens:,} tokens"


def _remove_old(folder: Path) -> None:
    """Leave the newest files alone: most bookmarks that nobody comes back to are of texts long forgotten."""
    with contextlib.suppress(OSError):
        files = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        for path in files[:-_MOST_FILES]:
            path.unlink(missing_ok=True)
