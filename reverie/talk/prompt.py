"""At a terminal: lines that are edited as they are typed, and text that wraps at words while it comes."""

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator

from rich.cells import cell_len

from reverie.errors import visible


def can_edit_lines() -> bool:
    """Whether both ends are a terminal, and one that can move its cursor."""
    ends = (sys.stdin, sys.stdout)
    return all(end is not None and end.isatty() for end in ends) and os.environ.get("TERM", "dumb") != "dumb"


def typed_lines(prompt: str, idle: float | None, waiting: Callable[[], bool]) -> Generator[str | None, None, None]:
    """Lines as they are typed. What is typed before its turn is shown in its turn, not in the midst of an answer.

    None comes after `idle` seconds in which nothing stood in the line, if `waiting` says that somebody waits for that.
    Close it when it is no longer needed, for the terminal to be as before.
    """
    from prompt_toolkit import PromptSession

    session = PromptSession[str | None]()

    async def watch() -> None:
        while idle is not None:
            await asyncio.sleep(idle)
            if not session.default_buffer.text and waiting():
                session.app.erase_when_done = True  # of this prompt nothing stays
                return session.app.exit(result=None)

    def begin() -> None:
        session.app.erase_when_done = False
        session.app.create_background_task(watch())

    with _keys_unseen(), contextlib.suppress(EOFError):
        while True:
            line = session.prompt(prompt, pre_run=begin)
            # Bytes that Python's encoding of standard input lacks come as surrogates.
            yield line and line.encode(errors="surrogateescape").decode(errors="replace")


@contextlib.contextmanager
def _keys_unseen() -> Iterator[None]:
    """Keys wait for who reads them, and do not show before."""
    try:
        import termios
    except ImportError:  # on Windows they do so by themselves
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    quiet = termios.tcgetattr(sys.stdin)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


class Wrapped:
    """Text that comes in pieces, handed on in lines that end between words.

    A word is handed on when it is whole; one that is longer than a line has lines of its own. The text's own line
    breaks stay, and what lines begin with.

    Args:
        write: gets the text.
        width: of a line, asked before every word; the terminal's if absent.
    """

    def __init__(
        self, write: Callable[[str], object], width: Callable[[], int] = lambda: shutil.get_terminal_size().columns
    ) -> None:
        self._write, self._width = write, width
        self._column, self._space, self._word = 0, "", ""

    def __call__(self, text: str) -> None:
        for char in text:
            if char == "\n":
                self.flush()
                self._write("\n")
                self._column, self._space = 0, ""
            elif char in " \t":
                self.flush()
                self._space += "    " if char == "\t" else " "
            else:
                if cell_len(char) > 1:  # scripts without spaces: lines may end before any of their letters
                    self.flush()
                self._word += char

    def flush(self) -> None:
        """Hand on what has come so far as a whole word."""
        if not self._word:
            return
        size, width = _cells(self._word), max(self._width(), 1)
        if self._column and self._column + len(self._space) + size > width:
            self._write("\n")
            self._column, self._space = 0, ""
        self._write(self._space + self._word)
        self._column += len(self._space) + size
        self._space = self._word = ""

    def begin_line(self) -> None:
        """Note that somebody else has ended the line; a word that is not whole yet goes on in the next."""
        self._column, self._space = 0, ""


def wrapped(text: str) -> str:
    """Text in lines of the terminal's width that end between words."""
    parts = list[str]()
    wrap = Wrapped(parts.append)
    wrap(text)
    wrap.flush()
    return "".join(parts)


def _cells(text: str) -> int:
    """Columns that a text takes, in the letters that standard output has."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return cell_len(visible(text).encode(encoding, "backslashreplace").decode(encoding))
