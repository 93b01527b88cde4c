"""The command line called as from a shell, in an empty folder, and what is true of every mistake."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from reverie.cli import app as cli


class Done(NamedTuple):
    code: int
    out: str
    err: str


Reverie = Callable[..., Done]


def in_empty_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Reverie:
    """`reverie` with the arguments it is called with; of use as a fixture."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["reverie", *map(str, arguments)])
        capsys.readouterr()  # of what the test did before
        with pytest.raises(SystemExit) as caught:
            cli.main()
        code = caught.value.code
        assert code is None or isinstance(code, int)
        captured = capsys.readouterr()
        return Done(code or 0, captured.out, captured.err)

    return call


def the_json(done: Done) -> dict[str, Any]:
    """The one JSON object on stdout."""
    assert done.code == 0
    content = json.loads(done.out)
    assert isinstance(content, dict)
    return content


def assert_one_line(done: Done, *parts: str) -> None:
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert done.err.endswith("\n")
    assert all(part in done.err for part in parts), done.err


def assert_usage(done: Done, sentence: str) -> None:
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: ")
    assert sentence in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
