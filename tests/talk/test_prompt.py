"""Lines that are typed at a terminal, and answers in lines that end between words."""

from __future__ import annotations

import io
import os
import random
import sys
import time
from collections.abc import Iterator
from typing import TextIO

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from reverie.talk.prompt import Wrapped, can_edit_lines, typed_lines

WORDS = ["a", "oboe", "lighthouse", "keeper's", "and", "of", "well-known", "it.", "incomprehensibilities", "ü", "is"]


def in_pieces(text: str, source: random.Random, width: int) -> str:
    """What comes out of it, if it comes in pieces as tokens do."""
    out = list[str]()
    wrap = Wrapped(out.append, lambda: width)
    while text:
        n = source.randrange(1, 7)
        wrap(text[:n])
        text = text[n:]
    wrap.flush()
    return "".join(out)


@pytest.mark.parametrize("width", [10, 20, 80])
def test_lines_end_between_words(width: int) -> None:
    """Nothing else changes but where a space becomes a line break; a line break stays one; lines are full."""
    source = random.Random(width)
    for _ in range(200):
        text = "".join(
            source.choice(WORDS) + source.choice(["\n", "\n\n", " ", " ", " ", " "]) for _ in range(40)
        ).strip()
        shown = in_pieces(text, source, width)
        assert shown.split() == text.split()
        assert all(len(line) <= width or " " not in line for line in shown.split("\n"))
        given, came = text.split("\n"), shown.split("\n")
        for line in given:  # each of them becomes some lines, in order
            parts = [came.pop(0)]
            while len(" ".join(parts)) < len(line):
                assert len(f"{parts[-1]} {came[0].split()[0]}") > width
                parts.append(came.pop(0))
            assert " ".join(parts) == line
        assert came == []


def test_what_lines_begin_with_stays() -> None:
    source = random.Random(0)
    assert in_pieces("* one\n    two\n\n\tthree", source, 20) == "* one\n    two\n\n    three"
    assert in_pieces("    incomprehensibilities", source, 10) == "    incomprehensibilities"


def test_letters_that_are_wide_and_words_that_never_end() -> None:
    shown = in_pieces("日本語" * 10, random.Random(0), 20)
    assert [len(line) for line in shown.split("\n")] == [10, 10, 10]


def test_letters_that_the_terminal_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written as \\xfc, which takes four columns."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert in_pieces("üü üü üü", random.Random(0), 17) == "üü üü\nüü"


def test_a_terminal_that_grows() -> None:
    out, width = list[str](), [9]
    wrap = Wrapped(out.append, lambda: width[0])
    wrap("one two three ")
    width[0] = 80
    wrap("four five")
    wrap.flush()
    assert "".join(out) == "one two\nthree four five"


def test_a_word_goes_on_after_a_message() -> None:
    out = list[str]()
    wrap = Wrapped(out.append, lambda: 20)
    wrap("light hou")
    out.append("\n(slept)\n")
    wrap.begin_line()
    wrap("se keeper")
    wrap.flush()
    assert "".join(out) == "light\n(slept)\nhouse keeper"


# -- lines


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[PipeInput]:
    """What is typed, with a terminal as standard input beside it."""
    here, there = os.openpty()
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()), open(here) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        yield pipe
    os.close(there)


def test_lines_are_edited(keys: PipeInput) -> None:
    """With backspace and arrows; earlier lines come again; Ctrl-D ends them."""
    keys.send_text("oboe\r")
    typed = typed_lines("> ", None, lambda: True)
    assert next(typed) == "oboe"
    keys.send_text("flutf\x7fe\x1b[D\x1b[Ds\r")
    assert next(typed) == "fluste"
    keys.send_text("\x1b[A\x1b[A\r")
    assert next(typed) == "oboe"
    keys.send_text("two\rlines\r")  # at once: typed before their turn
    assert [next(typed), next(typed)] == ["two", "lines"]
    keys.send_text("\x04")
    assert list(typed) == []


def test_ctrl_c_leaves(keys: PipeInput) -> None:
    keys.send_text("half a li\x03")
    with pytest.raises(KeyboardInterrupt):
        next(typed_lines("> ", None, lambda: True))


def test_a_while_without_a_word(keys: PipeInput) -> None:
    """Only where somebody waits for it."""
    waits = [False]
    typed = typed_lines("> ", 0.05, lambda: waits[0])
    keys.send_text("\r")
    assert next(typed) == ""
    waits[0] = True
    begun = time.monotonic()
    assert next(typed) is None
    assert time.monotonic() - begun >= 0.05
    keys.send_text("\r")
    waits[0] = False
    assert next(typed) == ""
    typed.close()


def test_the_terminal_is_as_before(keys: PipeInput) -> None:
    """And while there is no prompt, keys do not show."""
    import termios

    before = termios.tcgetattr(sys.stdin)
    assert before[3] & termios.ECHO
    typed = typed_lines("> ", None, lambda: True)
    keys.send_text("a\r")
    next(typed)
    assert not termios.tcgetattr(sys.stdin)[3] & termios.ECHO
    typed.close()
    assert termios.tcgetattr(sys.stdin) == before


def test_bytes_that_its_encoding_lacks(keys: PipeInput) -> None:
    keys.send_bytes(b"caf\xe9\r")
    assert next(typed_lines("> ", None, lambda: True)) == "caf\ufffd"


def test_where_lines_can_be_edited(keys: PipeInput, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal: TextIO = sys.stdin
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert can_edit_lines()
    monkeypatch.setenv("TERM", "dumb")
    assert not can_edit_lines()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not can_edit_lines()
