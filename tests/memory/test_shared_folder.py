"""Files here and in an object store are the old one or the new one, and one process at a time has a local folder."""

from __future__ import annotations

import multiprocessing
import os
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from reverie.errors import UserError
from reverie.memory import shared_folder
from reverie.memory.shared_folder import SharedFolder

fork = multiprocessing.get_context("fork")


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> SharedFolder:
    return SharedFolder(tmp_path / "a" / "b" if request.param == "local" else f"memory:/{tmp_path}", {})


def test_a_file_is_written_read_and_removed(folder: SharedFolder):
    before = datetime.now(UTC).timestamp() - 1  # file systems round
    folder.write("file", b"old")
    folder.write("file", b"newer")
    folder.write("sub/file", b"x")
    assert folder.sizes() == {"file": 5}
    assert (folder.has("file"), folder.has("sub"), folder.has("no"), folder.has("sub/file")) == (
        True,
        False,
        False,
        True,
    )
    assert (folder.read("file"), folder.read("file", 2), folder.read("file", 9)) == (b"newer", b"ne", b"newer")
    newer, absent = folder.read_beginnings(["file", "no"], 3)
    assert newer == b"new"
    assert isinstance(absent, FileNotFoundError)
    written = folder.written("file")
    assert written is not None
    assert before <= written.timestamp() <= datetime.now(UTC).timestamp() + 1
    folder.remove("file")
    assert (folder.sizes(), folder.has("file"), folder.written("file")) == ({}, False, None)
    for call in (lambda: folder.read("file"), lambda: folder.remove("file")):
        with pytest.raises(FileNotFoundError):
            call()


def test_a_folder_that_is_not_there_is_empty(folder: SharedFolder):
    assert (folder.sizes(), folder.has("file"), folder.read_beginnings([], 3)) == ({}, False, [])
    folder.remove_unfinished()


def test_a_listing_that_a_file_went_out_of_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As file systems do that ask for each file's size by itself."""
    folder = SharedFolder(tmp_path, {})
    folder.write("file", b"x")
    listing, calls = LocalFileSystem.ls, iter([True, True, False])

    def ls(*arguments: Any, **options: Any) -> Any:
        if next(calls):
            raise FileNotFoundError("other")
        return listing(*arguments, **options)

    monkeypatch.setattr(LocalFileSystem, "ls", ls)
    assert folder.sizes() == {"file": 1}


def test_what_a_killed_writer_leaves_is_removed_when_it_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = SharedFolder(tmp_path, {})
    folder.write("file", b"old")
    child = os.fork()
    if child == 0:
        shared_folder.move_into_place = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        folder.write("file", b"new")
    os.waitpid(child, 0)
    folder.remove_unfinished()
    assert len(folder.sizes()) == 2
    monkeypatch.setattr(shared_folder, "_STALE_S", -1)
    folder.remove_unfinished()
    assert folder.sizes() == {"file": 3}
    assert folder.read("file") == b"old"


def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    folder = SharedFolder(tmp_path, {})
    folder.write("file", b"old")
    monkeypatch.setattr(shared_folder, "move_into_place", interrupt)
    with pytest.raises(KeyboardInterrupt):
        folder.write("file", b"newer")
    assert folder.sizes() == {"file": 3}


def count_to(number: int, path: Path) -> None:
    folder = SharedFolder(path, {})
    for _ in range(number):
        with folder.alone():
            folder.write("count", b"%d" % (int(folder.read("count")) + 1))


def test_one_process_at_a_time_has_a_local_folder(tmp_path: Path):
    SharedFolder(tmp_path, {}).write("count", b"0")
    processes = [fork.Process(target=count_to, args=(20, tmp_path)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert SharedFolder(tmp_path, {}).read("count") == b"40"


def test_what_is_in_the_way_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "sub").write_bytes(b"")
    inside = SharedFolder(tmp_path / "file", {})
    for what, call in {"read": lambda: inside.read("x"), "write": lambda: inside.write("x", b"")}.items():
        with pytest.raises(UserError, match=f"^cannot {what} .*file/x: .*/file is a file, not a folder$"):
            call()
    with pytest.raises(UserError, match=r"^cannot write .*/sub/x: .*/sub is a file, not a folder$"):
        SharedFolder(tmp_path, {}).write("sub/x", b"")
    with pytest.raises(UserError, match=r"^cannot read .*: Is a directory$"):
        SharedFolder(tmp_path.parent, {}).read(tmp_path.name)
