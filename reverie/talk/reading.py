"""`reverie read`: a text of any length becomes a memory file, which can be broken off and gone on with.

The file is saved every ten seconds and at the end, but not between windows that are read side by side. Since what sleep
makes of these depends on the memory before them and on their tokens alone, a reading that went on is bit for bit one
that was never broken off.
"""

import hashlib
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from rich.filesize import decimal
from torch import Tensor

from reverie.errors import UserError, plain
from reverie.files import text_of
from reverie.interrupts import stop_requests
from reverie.memory.bookmark import Pace
from reverie.memory.history import History
from reverie.memory.memory import Memory, sleep_over
from reverie.sleep import Context, SleepConfig
from reverie.sleep.side_by_side import group_size
from reverie.talk.answer import AWAKE
from reverie.talk.heard import TURNS
from reverie.talk.sleeper import Sleeper, load_memory


@dataclass(frozen=True)
class Read:
    """The outcome of reading a text, or a part of it."""

    memory: Memory
    tokens: int  # of the whole text
    new_tokens: int  # read this time
    seconds: float
    stopped: signal.Signals | None = None  # what broke it off

    @property
    def complete(self) -> bool:
        return int(self.memory.tokens[0]) == self.tokens

    def sentence(self) -> str:
        memory, passes = self.memory, int(self.memory.passes[0])
        windows = -(-int(memory.tokens[0]) // memory.config.window_size)
        speed = f"read {self.new_tokens:,} tokens at {self.new_tokens / max(self.seconds, 1e-9):,.0f} tok/s"
        part = "all of it is" if self.complete else f"{int(memory.tokens[0]):,} of {self.tokens:,} tokens are"
        return (
            f"{speed if self.new_tokens else 'nothing was left to read'}; {part} in {decimal(memory.nbytes)}, slept "
            f"over in {windows:,} {'window' if windows == 1 else 'windows'}, {passes:,} passes"
        )

    def summary(self) -> dict[str, Any]:
        """Numbers as a dict that is ready for JSON."""
        return {
            "tokens": int(self.memory.tokens[0]),
            "tokens_of_text": self.tokens,
            "complete": self.complete,
            "passes": int(self.memory.passes[0]),
            "nbytes": self.memory.nbytes,
            "tokens_per_second": self.new_tokens / max(self.seconds, 1e-9),
        }


def read_file(path: str) -> str:
    """The text in a file, or in standard input where the path is "-"; raises UserError if it is empty or no UTF-8."""
    name = "standard input" if path == "-" else path
    if path == "-" and sys.stdin is None:
        raise UserError("standard input is closed: give the name of a file")
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise UserError(f"cannot read {plain(name)}: {getattr(error, 'strerror', None) or error}") from None
    try:
        text = text_of(data)
    except UnicodeDecodeError:
        raise UserError(f"{name} is no text in UTF-8") from None
    if not text.strip():
        raise UserError(f"{name} holds no text")
    return text


def begin(out: Path, resume: bool, sleeper: Sleeper, config: SleepConfig | None) -> Memory | None:
    """The memory to go on from, None at a beginning.

    Args:
        config: settings that a resumed reading must have begun with; any if absent.

    Raises:
        UserError: `out` is in the way, or is not there, or is of another model or settings.
    """
    if out.is_dir():
        raise UserError(f"{out} is a folder: give the name of a file in it, such as {out / 'memory.safetensors'}")
    if not resume:
        if out.exists():
            raise UserError(f"{out} is there already: resume it, or choose another name")
        return None
    memory = load_memory(out, sleeper)
    if config is not None and config != memory.config:
        raise UserError(f"{out} was begun with other passes or another tolerance: leave both out to go on as it began")
    return memory


class Reading:
    """A text that is read into a memory, some windows at a time.

    Args:
        out: the file of the memory.
        notes: kept with the memory.
        memory: of the beginning of this text, to go on from.
        save: writes the file.

    Raises:
        UserError: the memory is of another text.
    """

    def __init__(
        self,
        sleeper: Sleeper,
        tokens: Int[Tensor, " T"],
        out: Path,
        *,
        notes: Mapping[str, str],
        memory: Memory | None = None,
        save: Callable[[Memory, Path], None] = Memory.save,
    ) -> None:
        self._sleeper, self._tokens, self._out, self._notes, self._write = sleeper, tokens, out, notes, save
        self.done = self.first = 0 if memory is None else _tokens_read(memory, tokens, out)  # tokens
        self.memory = memory or Memory.empty(sleeper)
        self._history = History() if self.memory.history is None else self.memory.history.copy()
        self._pace = Pace(at_once=True)

    @property
    def complete(self) -> bool:
        return 0 < self.done == len(self._tokens)

    @torch.no_grad()
    def step(self) -> None:
        """Sleep over the next window, or those that are read side by side."""
        model, config = self._sleeper.sleeping, self.memory.config
        group = config.window_size * group_size(model, Context.empty(model), config, batch_size=1)
        new = self._tokens[None, self.done : (self.done // group + 1) * group]
        self.memory = sleep_over(model, new, config, memory=self.memory, history=self._history)
        self.done += new.shape[1]

    def save_if_due(self) -> None:
        """Write what was read so far, if it is time and the text goes on. Raises UserError where it cannot."""
        if not self.complete and self._pace.due():
            with self._pace.saving():
                self.save()

    def save(self) -> Memory:
        """Write what was read so far; the memory as it is in the file."""
        read, total = self._tokens[: self.done], len(self._tokens)
        complete = {"complete": "yes" if self.complete else f"no, {self.done} of {total} tokens"}
        notes = {**self.memory.notes, **self._notes, **complete, "tokens_sha256": _digest(read)}
        memory = replace(self.memory, notes=notes)
        self._write(memory, self._out)
        return memory


def read_text(
    sleeper: Sleeper,
    tokens: Int[Tensor, " T"],
    out: Path,
    *,
    notes: Mapping[str, str],
    memory: Memory | None = None,
    report: Callable[[int, int, int, int], None] = lambda windows, total, read, held: None,
) -> Read:
    """Sleep over a text window by window and leave the memory in `out`; Ctrl-C and SIGTERM end it.

    They wait for the window that is going, or for those that are read side by side.

    Args:
        notes, memory: as for `Reading`.
        report: called before the first window and after each: windows read, windows in all, tokens read, bytes held.

    Raises:
        UserError: the memory is of another text, or `out` cannot be written.
    """
    reading, begun = Reading(sleeper, tokens, out, notes=notes, memory=memory), time.monotonic()
    L, T = reading.memory.config.window_size, len(tokens)

    def tell() -> None:
        report(-(-reading.done // L), -(-T // L), reading.done, reading.memory.nbytes)

    tell()
    with stop_requests() as stop:
        while reading.done == 0 or (reading.done < T and stop.requested is None):
            reading.step()
            tell()
            reading.save_if_due()
        memory = reading.save() if reading.done > reading.first else reading.memory
    new = reading.done - reading.first
    return Read(memory, T, new, time.monotonic() - begun, stop.requested if reading.done < T else None)


def _tokens_read(memory: Memory, tokens: Tensor, out: Path) -> int:
    """The number of tokens of this text in a memory; raises UserError if it cannot go on with this text."""
    read = int(memory.tokens[0])
    if AWAKE in memory.notes or TURNS in memory.notes:
        raise UserError(f"{out} holds a chat, which would be lost: choose another name, or go on with reverie chat")
    if "tokens_sha256" not in memory.notes or memory.batch_size != 1:
        raise UserError(f"{out} is no memory that reverie read has made: choose another name")
    if read > len(tokens) or memory.notes["tokens_sha256"] != _digest(tokens[:read]):
        raise UserError(f"{out} is a memory of another text: choose another name for this one")
    if read < len(tokens) and read % memory.config.window_size:
        raise UserError(
            f"{out} has read a shorter text to its end: choose another name to read this one from its start"
        )
    return read


def _digest(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.cpu().to(torch.int64).numpy().astype("<i8").tobytes()).hexdigest()
