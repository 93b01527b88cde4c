"""A file is either the old one or the new one."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from reverie.errors import UserError
from reverie.files import remove_unfinished, write_atomic


@pytest.mark.parametrize("content", [b"new", lambda path: path.write_bytes(b"new")])
def test_the_new_content_replaces_the_old_one_and_nothing_else_stays(tmp_path: Path, content):
    path = tmp_path / "deep" / "card.json"
    write_atomic(path, b"old")
    write_atomic(path, content)
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["card.json"]


def test_the_temporary_path_lies_in_the_same_folder_and_keeps_the_suffix(tmp_path: Path):
    seen = []

    def write(path: Path) -> None:
        seen.append(path)
        path.write_bytes(b"")

    write_atomic(tmp_path / "weights.pt", write)
    assert seen[0].parent == tmp_path
    assert seen[0].suffix == ".pt"
    assert seen[0].name != "weights.pt"


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _half_then_full(path: Path) -> None:
    path.write_bytes(b"half")
    _full()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path: Path, monkeypatch, call: str):
    path = tmp_path / "card.json"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, _full)
    with pytest.raises(UserError, match=r"^cannot write .*card\.json: No space left on device$"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["card.json"]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "card.json"
    path.write_bytes(b"old")
    with pytest.raises(UserError, match="No space left"):
        write_atomic(path, _half_then_full)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["card.json"]


@contextmanager
def no_room():
    """Files of this process cannot grow beyond 1 kB: what pytest writes to neither, so no longer than needed."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_refusal_that_safetensors_reports_is_one_sentence(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    with no_room(), pytest.raises(UserError, match=r"^cannot write .*model\.safetensors: File too large$"):
        write_atomic(path, lambda temporary: save_file({"a": np.zeros(10_000)}, temporary))
    assert os.listdir(tmp_path) == []


def test_an_error_that_is_not_the_disk_s_passes_through(tmp_path: Path):
    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        write_atomic(tmp_path / "model.pt", write)
    assert os.listdir(tmp_path) == []


def test_an_interruption_leaves_nothing(tmp_path: Path):
    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "model.pt", write)
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_leaves_can_be_removed(tmp_path: Path):
    (tmp_path / ".hidden.json").write_bytes(b"")
    for name in ("model.pt", "card.json", "no suffix", ".hidden.json", "model.tmp.pt"):
        child = os.fork()
        if child == 0:
            write_atomic(
                tmp_path / name, lambda path: (path.write_bytes(b"half"), os.kill(os.getpid(), signal.SIGKILL))
            )
        os.waitpid(child, 0)
    assert len(os.listdir(tmp_path)) == 6
    remove_unfinished(tmp_path)
    assert os.listdir(tmp_path) == [".hidden.json"]


def test_a_folder_in_the_way_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot write"):
        write_atomic(tmp_path / "file" / "card.json", b"new")
