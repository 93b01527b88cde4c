"""`reverie serve`: what it refuses before it serves, in one sentence each."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from command_line import Reverie, assert_one_line, in_empty_folder

reverie = pytest.fixture(in_empty_folder)


def test_others_are_let_in_with_a_key_alone(reverie: Reverie, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REVERIE_API_KEYS", raising=False)
    assert_one_line(reverie("serve", "example", "--host", "0.0.0.0"), "--host 0.0.0.0 lets others in", "--api-key")
    assert_one_line(reverie("serve", "example", "--api-key", " "), "--api-key must be")
    assert_one_line(reverie("serve", "example", "--api-key", "schlüssel"), "--api-key must be")


def test_what_is_not_there_is_refused(reverie: Reverie, tmp_path: Path) -> None:
    assert_one_line(reverie("serve", "nothing", "--port", "0"), "there is no model at nothing")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_one_line(reverie("serve", "example", "--port", port), "cannot listen at 127.0.0.1", str(port))
    assert_one_line(reverie("serve", "example", "--host", "no.such.host.invalid", "--api-key", "x"), "cannot listen at")
    (tmp_path / "file").write_text("x")
    assert_one_line(reverie("serve", "example", "--port", "0", "--store", "file"), "file is a file, not a folder")
    for url in ("s3://bucket/sessions", "memory://sessions", "file:///sessions", "simplecache::s3://bucket"):
        assert_one_line(reverie("serve", "example", "--port", "0", "--store", url), f"{url} is a URL", "a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_so_it_is_before_there_are_workers(reverie: Reverie, tmp_path: Path, workers: str) -> None:
    (tmp_path / "file").write_text("x")
    options = ("--port", "0", "--workers", workers)
    assert_one_line(reverie("serve", "nothing", *options), "there is no model at nothing")
    assert_one_line(
        reverie("serve", "example", *options, "--store", "file/below"), "cannot keep sessions in file/below"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_seconds_are_above_zero(reverie: Reverie, seconds: str) -> None:
    assert_one_line(reverie("serve", "example", "--port", "0", "--idle-sleep", seconds), "--idle-sleep must be")


def test_what_is_not_installed_is_named(reverie: Reverie, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("reverie.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert_one_line(reverie("serve", "example"), "uvicorn", "pip install 'reverie[serve]'")
