"""What commands leave off the screen, at a terminal and in a pipe; and that a library's user sees all of it."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from command_line import Reverie, in_empty_folder
from huggingface_hub.utils import are_progress_bars_disabled
from tiny_folder import tiny_folder

from reverie.hf import load
from reverie.ops import dispatch
from reverie.sleep import SleepConfig

pytestmark = pytest.mark.hf

NOISE = ("Loading weights", "Writing model", "it/s", "backend 'auto'", "[transformers]", "falling back")
BOOK = "It was a dark and stormy night. Rain fell in torrents, except at times.\n"


@pytest.fixture
def reverie(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Reverie:
    return in_empty_folder(monkeypatch, capsys, tmp_path)


@pytest.fixture
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a library's user may have set it, with nothing said yet."""
    transformers.logging.set_verbosity_info()
    transformers.logging.enable_progress_bar()
    dispatch._log_choice.cache_clear()


def commands(base: str) -> list[list[str]]:
    """Every command that loads a model of transformers, each after those that make what it reads."""
    return [
        ["convert", "--from", base, "--insert", "jet", "--layers", "1", "--window", "8", "--out", "out"],
        ["generate", "out", "--prompt", BOOK, "--tokens", "3"],
        ["read", "out", "book.txt", "--memory", "book.safetensors"],
        ["ask", "out", "--memory", "book.safetensors", "Why?"],
        ["chat", "out"],
        ["watch", "book.safetensors"],
    ]


def test_commands_are_quiet_and_put_back_what_they_changed(
    reverie: Reverie, loud: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_folder(tmp_path / "base")
    (tmp_path / "book.txt").write_text(BOOK)
    (tmp_path / "empty").touch()
    caplog.set_level(logging.INFO)
    with (tmp_path / "empty").open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        for command in commands("base"):
            dispatch._log_choice.cache_clear()
            caplog.clear()
            done = reverie(*command)
            assert done.code == 0, (command, done.err)
            assert not [word for word in NOISE if word in done.err], (command, done.err)
            assert not [x for x in caplog.messages if "backend 'auto'" in x], command
            assert transformers.logging.get_verbosity() == logging.INFO
            assert transformers.logging.is_progress_bar_enabled()
            assert not are_progress_bars_disabled()
    done = reverie("convert", "--from", "nowhere", "--out", "elsewhere")
    assert done.code == 2
    assert transformers.logging.is_progress_bar_enabled()


def test_a_librarys_user_sees_bars_and_backends(
    loud: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from reverie.hf.convert import convert

    convert(str(tiny_folder(tmp_path / "base")), tmp_path / "out", SleepConfig(window_size=8), kind="jet", layers=1)
    dispatch._log_choice.cache_clear()
    capsys.readouterr()
    model: Any = load(tmp_path / "out")
    model(torch.ones(1, 3, dtype=torch.long))
    assert "Loading weights" in capsys.readouterr().err
    assert any("backend 'auto' runs the fast weights on" in message for message in caplog.messages)


def test_who_turned_bars_off_keeps_them_off(reverie: Reverie, loud: None, tmp_path: Path) -> None:
    tiny_folder(tmp_path / "base")
    transformers.logging.disable_progress_bar()
    assert reverie("convert", "--from", "base", "--insert", "jet", "--layers", "1", "--out", "out").code == 0
    assert not transformers.logging.is_progress_bar_enabled()
    assert are_progress_bars_disabled()
    transformers.logging.enable_progress_bar()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["terminal", "pipe"])
def test_the_screen(place: str, tmp_path: Path) -> None:
    """Processes of their own, as a shell starts them: bars look for a terminal."""
    tiny_folder(tmp_path / "base", "qwen3_next")
    (tmp_path / "book.txt").write_text(BOOK)
    first, *others = commands("base")
    for command in ([x for x in first if x not in ("--insert", "jet", "--layers", "1")], *others):
        said = shown(command, tmp_path, terminal=place == "terminal")
        assert not [word for word in NOISE if word in said], (command, said)


def shown(command: list[str], folder: Path, *, terminal: bool) -> str:
    """What a command writes to stderr."""
    mine, its = pty.openpty() if terminal else os.pipe()
    call = [sys.executable, "-c", "from reverie.cli.app import main; main()", *command]
    process = subprocess.Popen(call, cwd=folder, stderr=its, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    os.close(its)
    said = b""
    while True:
        try:
            part = os.read(mine, 65536)
        except OSError:  # a terminal that nobody writes to any more
            break
        if not part:
            break
        said += part
    os.close(mine)
    assert process.wait() == 0, said
    return said.decode()
