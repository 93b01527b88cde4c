"""`reverie chat`: lines from a terminal or a pipe, to the model or to the session."""

import os
import select
import signal
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import TextIO

from reverie.errors import UserError, plain
from reverie.interrupts import Terminated, stop_requests
from reverie.memory.file import read_info
from reverie.talk.chat import Chat, Nap, holds
from reverie.talk.prompt import Wrapped, wrapped

HELP = """\
/save FILE    save the chat; without FILE to where it was saved or loaded last
/branch FILE  save a copy, and go on where it was
/load FILE    go on with another chat, or from another memory
/undo         take back what you said last, and the answer
/sleep        sleep over what was said since the last time
/memory       what the memory holds
/quit         leave, as Ctrl-D does; what was not saved is forgotten
Ctrl-C ends an answer; where there is none, it leaves."""


def lines(file: TextIO, idle: float | None) -> Generator[str | None, None, None]:
    """Lines without their ends, as they come, and None after every `idle` seconds without one."""
    if idle is None:
        yield from (line.decode(errors="replace").rstrip("\r\n") for line in file.buffer)
        return
    # Lines are cut here, since `select` does not see what waits in a buffer of Python's.
    rest = b""
    while True:
        if not select.select([file], [], [], idle)[0]:
            yield None
            continue
        data = os.read(file.fileno(), 2**16)
        *whole, rest = (rest + data).split(b"\n")
        yield from (line.decode(errors="replace").rstrip("\r") for line in whole)
        if not data:
            if rest:
                yield rest.decode(errors="replace")
            return


class Session:
    """A chat, and what is said about it.

    Args:
        path: where it was loaded from.
        say: gets the model's words, piece by piece.
        tell: gets a line about what happens.
        prompt: said when it is the user's turn, where `lines` does not show one.
        at_terminal: somebody sits there, who is told where they are, and ends answers by Ctrl-C.
        wraps: lines of an answer are to end between words.
    """

    def __init__(
        self,
        chat: Chat,
        path: Path | None,
        *,
        say: Callable[[str], None],
        tell: Callable[[str], None],
        prompt: str = "",
        at_terminal: bool = False,
        wraps: bool = False,
    ) -> None:
        self.chat, self.path, self.say, self.prompt, self.at_terminal = chat, path, say, prompt, at_terminal
        self.tell = (lambda text: tell(wrapped(text))) if wraps else tell
        self._wraps, self._wrap = wraps, Wrapped(self._write)
        self._midline = False
        chat.on_sleep = self._slept

    def greet(self) -> None:
        """Tell of the model, of the memory if there is one, and of /help."""
        config = self.chat.memory.config
        passes = "1 pass" if config.num_sleep_passes == 1 else f"{config.num_sleep_passes} passes"
        self.tell(f"{plain(self.chat.sleeper.name)}: sleeps over every {config.window_size:,} tokens, {passes}")
        if self.path is not None:
            self.tell(f"memory {self.path}: {self._about()}")
        self.tell("/help lists the commands")

    def run(self, lines: Iterable[str | None]) -> None:
        """Take lines until they end, or /quit; None among them is a while without a word."""
        self._write(self.prompt)
        for line in lines:
            if line is None:
                if self.chat.sleep():
                    self._write(self.prompt)
                continue
            self._midline = False  # after what was typed
            if line.strip() == "/quit":
                return
            try:
                self._take(line.strip())
            except UserError as error:
                self.tell(f"error: {error}")
            self._write(self.prompt)
        if self.prompt:
            self._write("\n")  # after Ctrl-D

    def _take(self, line: str) -> None:
        if line and not line.startswith("/"):
            return self._answer(line)
        command, _, argument = line.partition(" ")
        path = Path(argument.strip()).expanduser() if argument.strip() else None
        match command:
            case "":
                pass
            case "/save":
                self._save(path or self.path, stays=True)
            case "/branch":
                self._save(path, stays=False)
            case "/load":
                if path is None:
                    raise UserError("say where from: /load FILE")
                self.chat.load(path)
                self.path = path
                self.tell(f"loaded {path}: {self._held()}")
            case "/undo":
                text = plain(self.chat.undo())
                self.tell(f"took back {text[:60]!r}; {self._held()}")
            case "/sleep":
                if not self.chat.sleep():
                    self.tell("nothing was said since the last sleep")
            case "/memory":
                self.tell(self._about())
            case "/help":
                self.tell(HELP)
            case _:
                raise UserError(f"there is no command {command}; /help lists them")

    def _answer(self, line: str) -> None:
        """Answer a line; Ctrl-C at a terminal ends the answer alone."""
        self._wrap = Wrapped(self._write)
        write = self._wrap if self._wraps else self._write
        with stop_requests() as stop:
            answer = self.chat.say(line, write, lambda: stop.requested is not None)
        if answer:
            write("\n")
        if stop.requested == signal.SIGTERM:
            raise Terminated("terminated")
        if stop.requested is not None:
            if not answer or not self.at_terminal:
                raise KeyboardInterrupt
            self.tell("(cut off: what was written counts as said)")

    def _write(self, text: str) -> None:
        if text:
            self.say(text)
            self._midline = not text.endswith("\n")

    def _save(self, path: Path | None, *, stays: bool) -> None:
        if path is None:
            raise UserError(f"say where to: {'/save' if stays else '/branch'} FILE")
        if path != self.path and path.exists():
            try:
                read_info(path)
            except UserError:
                raise UserError(f"{path} is there already and is no memory: choose another name") from None
        self.chat.save(path)
        self.path = path if stays else self.path
        self.tell(f"saved in {path}: {self._held()}")

    def _held(self) -> str:
        return f"{holds(self.chat.memory)}, {len(self.chat.awake)} awake"

    def _about(self) -> str:
        memory, config = self.chat.memory, self.chat.memory.config
        about = f" of {plain(memory.notes['source'])}" if memory.notes.get("source") else ""
        passes, awake = f"{int(memory.passes[0]):,} passes so far", len(self.chat.awake)
        return f"{holds(memory)}{about}, {passes}; {awake} of {config.window_size} tokens awake"

    def _slept(self, nap: Nap) -> None:
        """Tell of a sleep, on a line of its own also in the midst of an answer."""
        if self._midline:
            self._write("\n")
        self._wrap.begin_line()
        self.tell(f"({nap.sentence()})")
