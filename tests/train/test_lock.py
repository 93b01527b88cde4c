"""A folder belongs to one process at a time, which clears away what a killed one left half-written."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from same_run import Killed, kill_at
from tiny_recipe import tiny_recipe

from reverie.errors import UserError
from reverie.train import checkpoint
from reverie.train.checkpoint import LOCK_NAME, run_lock
from reverie.train.run import train

fork = multiprocessing.get_context("fork")
SENTENCE = "another process is training in {}: wait for it, or choose another folder"


@pytest.fixture
def taken(tmp_path: Path) -> Iterator[Path]:
    """The folder of a run in which another process is at work."""
    with pytest.raises(Killed):
        train(tiny_recipe(), tmp_path, report=kill_at(3))
    ready, done = fork.Event(), fork.Event()

    def hold() -> None:
        with run_lock(tmp_path):
            ready.set()
            done.wait()

    other = fork.Process(target=hold)
    other.start()
    ready.wait()
    yield tmp_path
    done.set()
    other.join()


@pytest.mark.parametrize("resume", [False, True])
def test_the_second_one_is_refused(taken: Path, monkeypatch: pytest.MonkeyPatch, resume: bool):
    monkeypatch.setattr(checkpoint, "PATIENCE_S", 0.0)
    before = {path: path.read_bytes() for path in taken.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as caught:
        train(tiny_recipe(), taken, resume=resume)
    assert str(caught.value) == SENTENCE.format(taken)
    assert {path: path.read_bytes() for path in taken.rglob("*") if path.is_file()} == before


def test_afterwards_it_is_free_and_the_folder_as_it_would_be_without_a_lock(tmp_path: Path):
    out = tmp_path / "a" / "run"

    def fail() -> None:
        with run_lock(out):
            assert os.listdir(out) == [LOCK_NAME]
            raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            fail()
        assert os.listdir(out) == []


def test_the_lock_goes_with_its_process(tmp_path: Path):
    def die() -> None:
        with run_lock(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)

    killed = fork.Process(target=die)
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert (tmp_path / LOCK_NAME).exists()
    started = time.monotonic()
    with run_lock(tmp_path):
        pass
    assert time.monotonic() - started < checkpoint.PATIENCE_S / 2
    assert list(tmp_path.iterdir()) == []


def test_it_waits_a_little_for_what_a_killed_process_has_forked(tmp_path: Path):
    """As data workers are: they have the lock as well until they notice."""

    def die() -> None:
        with run_lock(tmp_path):
            if os.fork():
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.3)
            os._exit(0)

    killed = fork.Process(target=die)
    killed.start()
    killed.join()
    with run_lock(tmp_path):
        pass


def test_one_after_the_other_and_never_two_at_a_time(tmp_path: Path):
    """Though each removes the file by which the others wait."""
    inside, most, errors = [0], [0], []

    def work() -> None:
        try:
            for _ in range(5):
                with run_lock(tmp_path):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    time.sleep(0.002)
                    inside[0] -= 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert most == [1]


def test_what_a_killed_process_left_half_written_is_removed_and_nothing_else(tmp_path: Path):
    half = [".checkpoint.0123abcd.tmp.safetensors", ".card.fedc9876.tmp.json"]
    others = ["checkpoint.safetensors", "notes.tmp", ".notes.tmp.txt", "a.0123abcd.tmp.json", ".gitignore"]
    for name in half + others:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / half[0]).write_bytes(b"not ours")
    with run_lock(tmp_path):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "tensorboard"])
    assert os.listdir(tmp_path / "tensorboard") == half[:1]


def test_a_folder_that_cannot_be_made_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(UserError, match=r"^cannot write .*/file/run/\.lock: Not a directory$"),
        run_lock(tmp_path / "file" / "run"),
    ):
        pass

    def refuse(*_: Any, **__: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=r"^cannot write .*/run/\.lock: Permission denied$"), run_lock(tmp_path / "run"):
        pass
