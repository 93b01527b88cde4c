"""Killed without warning, at random moments and in the middle of writing, or out of room: a run loses only time."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save
from same_run import Killed, assert_same_run, kill_at
from tiny_recipe import tiny_recipe

from reverie.errors import UserError
from reverie.recipe import Recipe
from reverie.results.checkpoint import BEFORE, FILE_NAME, Progress, find_checkpoint, load_checkpoint
from reverie.results.run import CARD_NAME
from reverie.train import checkpoint
from reverie.train.checkpoint import LOCK_NAME
from reverie.train.run import train

pytestmark = pytest.mark.slow

# Forked processes import nothing: this one has already trained, for everything is compared to an undisturbed run.
fork = multiprocessing.get_context("fork")
RECIPE = tiny_recipe(train={"checkpoint_every": 1})  # of six steps, with points of the curve at 3 and 6
LONG = tiny_recipe(train={"checkpoint_every": 1, "steps": 240, "eval_every": 40})
KILLS = 20


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    train(RECIPE, out)
    return out


def steps_done(out: Path) -> int | None:
    """By the newest checkpoint, which is whole if it is there."""
    place = find_checkpoint(out)
    return None if place is None else load_checkpoint(place).progress.step


def half_written(out: Path) -> list[Path]:
    return [path for path in out.glob(".*") if ".tmp" in path.name]


def assert_goes_on(out: Path, undisturbed: Path, recipe: Recipe = RECIPE) -> None:
    """To the same run, in a folder that looks the same."""
    train(recipe, out, resume=steps_done(out) is not None)
    assert_same_run(out, undisturbed)
    assert sorted(os.listdir(out)) == [CARD_NAME, FILE_NAME, "tensorboard"]


# -- at random moments


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """To write a checkpoint takes about as long as a step."""

    def save_slowly(tensors: Any, path: Path, metadata: Any) -> None:
        content = save(tensors, metadata)
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            time.sleep(0.01)
            file.write(content[len(content) // 2 :])

    monkeypatch.setattr(checkpoint, "save_file", save_slowly)


def killed(out: Path, steps: int, *, delay_s: float, in_a_write: bool) -> int:
    """Train in a process and kill it some time after it has done so many steps; returns the last one it has reported.

    In a write it dies as soon as a half-written checkpoint shows.
    """
    found, reported, old_halves = steps_done(out), fork.Value("l", 0, lock=False), half_written(out)

    def report(progress: Progress, loss: float) -> None:
        reported.value = progress.step

    def too_early() -> bool:
        if in_a_write and set(half_written(out)) <= set(old_halves):
            return True
        return steps > 0 and reported.value < (found or 0) + steps

    child = fork.Process(target=train, args=(LONG, out), kwargs={"resume": found is not None, "report": report})
    child.start()
    while too_early() and child.is_alive():
        time.sleep(0.0005)
    time.sleep(delay_s)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    return reported.value


def test_twenty_kills_at_random_moments_change_nothing(tmp_path: Path, slow_disk: None):
    train(LONG, tmp_path / "undisturbed")
    rng, out, struck, writes = random.Random(0), tmp_path / "run", [], 0
    for i in range(KILLS):
        before, steps = steps_done(out) or 0, rng.randrange(4)
        delay_s = rng.uniform(0, 0.06 if i % 2 else 0.004)
        struck.append(killed(out, steps, delay_s=delay_s, in_a_write=i % 2 == 0))
        halves, after = half_written(out), steps_done(out) or 0
        writes += len(halves)
        assert len(halves) <= 1  # those of earlier kills are gone
        assert max(struck[-1], before) <= after <= max(struck[-1], before) + 1  # what is reported is on the disk
    assert len(set(struck)) >= KILLS // 2
    assert writes >= KILLS // 5
    assert_goes_on(out, tmp_path / "undisturbed", LONG)


# -- in the middle of writing


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_halfway(tensors: Any, path: Path, metadata: Any) -> None:
    path.write_bytes(save(tensors, metadata)[:-1000])
    die()


def die_afterwards(source: Path, target: Path) -> None:
    os.rename(source, target)
    if target.name == FILE_NAME:
        die()


def die_between(source: Path, target: Path) -> None:
    """When the checkpoint before has its second name, and the new one none."""
    os.rename(source, target)
    if target.name == BEFORE or not target.with_name(BEFORE).exists():
        die()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("module", "function", "deadly", "kept"),
    [
        (checkpoint, "save_file", die_halfway, "old"),
        (os, "fsync", die, "old"),
        (os, "replace", die, "old"),
        (os, "replace", die_between, "old"),
        (os, "replace", die_afterwards, "new"),
    ],
)
def test_killed_in_the_middle_of_a_checkpoint_the_one_before_is_used(
    tmp_path: Path, undisturbed: Path, module: Any, function: str, deadly: Any, kept: str, first: bool
):
    """Of the very first one, before any step, or of the one after the third."""

    def run() -> None:
        def report(progress: Progress, loss: float) -> None:
            if progress.step == 2:
                setattr(module, function, deadly)

        if first:
            setattr(module, function, deadly)
        train(RECIPE, tmp_path, report=report)

    child = fork.Process(target=run)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    old, new = (None, 0) if first else (2, 3)
    if first and deadly is die_between:
        kept = "new"  # there is none before
    assert steps_done(tmp_path) == (old if kept == "old" else new)
    assert bool(half_written(tmp_path)) == (kept == "old")
    assert (tmp_path / LOCK_NAME).exists()
    assert_goes_on(tmp_path, undisturbed)


# -- what the disk refuses


def refusal(out: Path, step: int) -> tuple[str, str]:
    """The error of a training that can write nothing more after this step, and all that it printed on stderr."""
    answers, answer = fork.Pipe(duplex=False)
    printed = out.with_suffix(".err")

    def fill_disk(progress: Progress, loss: float) -> None:
        if progress.step == step:  # this is how it looks to those who are not root, too
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    def run() -> None:
        os.dup2(os.open(printed, os.O_CREAT | os.O_WRONLY), 2)
        try:
            train(RECIPE, out, report=fill_disk)
        except UserError as error:
            answer.send(str(error))

    child = fork.Process(target=run)
    child.start()
    child.join()
    assert answers.poll(), printed.read_text()
    return answers.recv(), printed.read_text()


@pytest.mark.parametrize(("step", "what"), [(3, FILE_NAME), (2, "tensorboard")])
def test_without_room_it_ends_in_one_sentence_and_keeps_the_checkpoint(
    tmp_path: Path, undisturbed: Path, step: int, what: str
):
    """For the next checkpoint, and for the next point of the curve."""
    out = tmp_path / "run"
    assert refusal(out, step) == (f"cannot write {out / what}: File too large", "")
    assert steps_done(out) == step
    assert half_written(out) == []
    assert_goes_on(out, undisturbed)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """The folder of a run of three steps; nothing can be written there."""
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(RECIPE, out, report=kill_at(3))
    if os.geteuid():
        out.chmod(0o555)
        yield out
        out.chmod(0o755)
        return
    try:  # permissions are not for root
        for options in (["--bind", out], ["-o", "remount,bind,ro", out]):
            subprocess.run(["mount", *map(str, options), str(out)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this root can mount nothing")
    yield out
    subprocess.run(["umount", str(out)], check=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_read_only_folder_is_refused_before_a_step_is_made(read_only: Path, resume: bool):
    before = {path: path.read_bytes() for path in read_only.rglob("*") if path.is_file()}
    reason = "(Read-only file system|Permission denied)"
    with pytest.raises(UserError, match=rf"^cannot write {read_only}/{LOCK_NAME}: {reason}$"):
        train(RECIPE, read_only, resume=resume, report=kill_at(4))
    assert {path: path.read_bytes() for path in read_only.rglob("*") if path.is_file()} == before
