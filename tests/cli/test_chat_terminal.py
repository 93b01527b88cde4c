"""`reverie chat` in a terminal of its own: what is on the screen, and how it is left."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import time
from pathlib import Path

import pytest
from tiny_sleeper import FACTS, QUESTION, tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")]

fcntl, pty, struct, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "struct", "termios"))
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()=>][A-Z0-9]?|\r")


class Terminal:
    """A terminal with a command in it."""

    def __init__(self, *arguments: str, columns: int = 80, **environment: str) -> None:
        self.process, self.end = pty.fork()
        if self.process == 0:
            own = {key: x for key, x in os.environ.items() if key not in ("COLUMNS", "LINES")}  # of the tests
            variables = {**own, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **environment}
            os.execve(sys.executable, [sys.executable, "-m", "reverie", *arguments], variables)
        fcntl.ioctl(self.end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self._raw = b""

    @property
    def shown(self) -> str:
        """All that was shown, without what controls the terminal."""
        return CONTROL.sub("", self._raw.decode(errors="replace"))

    def until(self, sign: str, limit_s: float = 30) -> str:
        """What is shown from now on until this sign is."""
        begun, before = time.monotonic(), len(self.shown)
        while sign not in self.shown[before:]:
            assert time.monotonic() - begun < limit_s, self.shown
            if not select.select([self.end], [], [], 0.2)[0]:
                continue
            try:
                self._raw += os.read(self.end, 2**16)
            except OSError:
                break  # it has ended
        return self.shown[before:]

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())

    def ended(self) -> int:
        self.until("\0")
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tiny_run(tmp_path / "model")


@pytest.mark.parametrize(("columns", "more"), [(80, {}), (20, {"NO_COLOR": "1", "PYTHONIOENCODING": "ascii"})])
def test_a_conversation(model: Path, columns: int, more: dict[str, str]) -> None:
    terminal = Terminal("chat", "model", columns=columns, **more)
    opening = terminal.until("\n>")
    assert "tiny model: sleeps over every 8 tokens, 2 passes /help lists the commands" in " ".join(opening.split())
    terminal.type("/help\r")
    listed = terminal.until("it leaves.")
    assert all(command in listed for command in ("/save FILE", "/branch FILE", "/undo", "/sleep", "/memory", "/quit"))
    assert [line for line in listed.split("\n") if len(line) > columns] == []
    terminal.type(f"{FACTS}\r{QUESTION}\r/memory\r/quit\r")  # while nobody reads them: each is shown in its turn
    assert terminal.ended() == 0
    shown = "".join(terminal.shown.split())
    asked, told = (shown.index(words) for words in ("lynxdoes", "16tokensinmemory"))
    assert shown.index("(sleptover8tokens,2passes") < asked < told
    assert "/memory" not in shown[shown.index("Ctrl-C") : asked]
    assert "Traceback" not in shown


@pytest.mark.parametrize(("leave", "code"), [("\x04", 0), ("\x03", 130), (signal.SIGTERM, 143)])
def test_the_terminal_is_left_as_it_was(model: Path, leave: str | signal.Signals, code: int) -> None:
    terminal = Terminal("chat", "model")
    before = termios.tcgetattr(terminal.end)
    terminal.until("\n>")
    terminal.type("half a l" if isinstance(leave, signal.Signals) else "")
    time.sleep(0.5)
    assert termios.tcgetattr(terminal.end)[3] != before[3]
    terminal.type(leave) if isinstance(leave, str) else os.kill(terminal.process, leave)
    terminal.until("forgotten" if code else "\0")
    assert termios.tcgetattr(terminal.end) == before
    assert terminal.ended() == code
    assert "Traceback" not in terminal.shown


def test_a_terminal_that_can_do_nothing(model: Path) -> None:
    terminal = Terminal("chat", "model", TERM="dumb")
    terminal.until("\n>")
    terminal.type(f"{QUESTION}\n")
    terminal.until("\n>")
    terminal.type("\x04")
    assert terminal.ended() == 0
    assert "\x1b" not in terminal.shown
