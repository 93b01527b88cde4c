"""Whoever makes the batches, and where, they are the same in the same order; and no process outlives the training."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from same_run import Killed, assert_same_run, kill_at, without_times
from tiny_recipe import tiny_recipe, write_tiny

from reverie.errors import UserError
from reverie.recipe import Recipe
from reverie.results.checkpoint import FILE_NAME, Progress, load_checkpoint
from reverie.sleep.labels import count_labels
from reverie.tasks import Batch, DeviceTask, Rule110
from reverie.train import data as module
from reverie.train.curriculum import scheduled_depth
from reverie.train.data import Ready, made_there, make_batch, ready_batches
from reverie.train.run import train
from reverie.workers import AHEAD


def with_workers(number: int = 2, **train: Any) -> Recipe:
    return tiny_recipe(train={"data_workers": number, "curriculum": 0.8, **train})


def scheduled(recipe: Recipe) -> Callable[[int], int]:
    return partial(scheduled_depth, recipe.train, recipe.task.depths())


@contextmanager
def batches_of(recipe: Recipe, first: int) -> Iterator[Iterator[Batch]]:
    with ready(recipe, first, None) as made:
        yield (one.batch for one in made)


def ready(
    recipe: Recipe, first: int, examples: range | None, device: str = "cpu"
) -> AbstractContextManager[Iterator[Ready]]:
    rows = range(recipe.train.batch_size) if examples is None else examples
    return ready_batches(recipe.task, recipe.train, recipe.sleep.window_size, first, rows, device, scheduled(recipe))


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        assert isinstance(our, Batch)
        assert all(torch.equal(a, b) for a, b in zip(our, their, strict=True))


@pytest.mark.parametrize("first", [0, 4, 6])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_batches_are_those_of_the_remaining_steps_in_order(workers: int, first: int):
    recipe = with_workers(workers)
    with batches_of(recipe, first) as made:
        assert_same(list(made), [make_batch(recipe.task, recipe.train, step) for step in range(first, 6)])


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_it_makes_no_difference_how_the_processes_start(monkeypatch: pytest.MonkeyPatch, method: str):
    monkeypatch.setattr(module, "_context", lambda: multiprocessing.get_context(method))
    with batches_of(with_workers(), 2) as made:
        assert_same(list(made), [make_batch(with_workers().task, with_workers().train, step) for step in range(2, 6)])


def test_a_process_with_cuda_is_not_forked(monkeypatch: pytest.MonkeyPatch):
    assert module._context() is multiprocessing.get_context()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert module._context().get_start_method() == "spawn"


def test_without_workers_no_process_starts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "made_ahead", lambda *_, **__: pytest.fail("not needed"))
    with batches_of(with_workers(0), 0) as made:
        assert len(list(made)) == 6
    assert not multiprocessing.active_children()


@pytest.fixture
def forked_batch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], Batch]], None]:
    """Gives the task another way of making the batch of a step; a forked process inherits it."""

    def use(make: Callable[[int], Batch]) -> None:
        monkeypatch.setattr(module, "_context", lambda: multiprocessing.get_context("fork"))
        monkeypatch.setattr(module, "count_labels", lambda mask, size: count_labels(mask, size) if mask.ndim else mask)
        monkeypatch.setattr(Rule110, "batch", lambda self, split, seed, step, *_, **__: make(step))

    return use


def test_workers_have_one_thread(forked_batch: Callable[[Callable[[int], Batch]], None]):
    forked_batch(lambda step: Batch(*[torch.tensor(torch.get_num_threads())] * 5))
    torch.set_num_threads(2)
    try:
        with batches_of(with_workers(), 0) as made:
            assert {int(batch.tokens) for batch in made} == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_they_work_ahead_but_not_without_end(tmp_path: Path, forked_batch: Callable[[Callable[[int], Batch]], None]):
    def make(step: int) -> Batch:
        (tmp_path / str(step)).touch()
        return Batch(*[torch.tensor(step)] * 5)

    forked_batch(make)
    with batches_of(with_workers(steps=100), 0) as made:
        assert [int(next(made).tokens) for _ in range(10)] == list(range(10))
    ahead = len(list(tmp_path.iterdir())) - 10
    assert 0 <= ahead <= 2 * AHEAD


# -- where the model is


def assert_those_of_the_steps(made: list[Ready], recipe: Recipe, first: int, examples: range | None = None) -> None:
    assert len(made) == recipe.train.steps - first
    for step, (batch, labels) in enumerate(made, start=first):
        expected = make_batch(recipe.task, recipe.train, step, examples)
        assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))
        assert torch.equal(labels, count_labels(expected.loss_mask, recipe.sleep.window_size))


@pytest.mark.parametrize("first", [0, 4])
@pytest.mark.parametrize("examples", [None, range(2, 5)])
def test_on_the_cpu(first: int, examples: range | None):
    recipe = tiny_recipe(train={"curriculum": 0.8})
    with ready(recipe, first, examples) as made:
        assert_those_of_the_steps(list(made), recipe, first, examples)


@pytest.mark.parametrize("stretch", [1, 4, 64])
@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("examples", [None, range(2, 5)])
def test_by_the_task_on_a_device(stretch: int, first: int, examples: range | None, monkeypatch: pytest.MonkeyPatch):
    """Any device: here the CPU."""
    monkeypatch.setattr(module, "STRETCH", stretch)
    recipe = tiny_recipe(train={"curriculum": 0.8, "seed": 7})
    rows = examples or range(recipe.train.batch_size)
    assert isinstance(recipe.task, DeviceTask)
    made = made_there(
        recipe.task, recipe.train, recipe.sleep.window_size, first, rows, torch.device("cpu"), scheduled(recipe)
    )
    assert_those_of_the_steps(list(made), recipe, first, examples)


def test_a_gpu_makes_them_itself_if_the_task_can(monkeypatch: pytest.MonkeyPatch):
    called: list[Any] = []
    monkeypatch.setattr(module, "made_there", lambda *arguments: iter(called.append(arguments) or ()))
    recipe = tiny_recipe()
    assert isinstance(recipe.task, DeviceTask)
    with ready(recipe, 2, range(3), "cuda") as made:
        assert list(made) == []
    assert [arguments[:-1] for arguments in called] == [
        (recipe.task, recipe.train, recipe.sleep.window_size, 2, range(3), torch.device("cuda"))
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("by_the_task", [True, False])
def test_on_cuda(by_the_task: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    if not by_the_task:
        monkeypatch.setattr(module, "DeviceTask", int)
    recipe = tiny_recipe(train={"curriculum": 0.8})
    with ready(recipe, 1, None, "cuda") as made:
        there = list(made)
    assert all(x.is_cuda for batch, _ in there for x in batch)
    here = [Ready(type(batch)(*(x.cpu() for x in batch)), labels) for batch, labels in there]
    assert_those_of_the_steps(here, recipe, 1)


# -- training with them


def test_a_run_is_the_same_with_workers(tmp_path: Path):
    for workers in (0, 2):
        train(with_workers(workers), tmp_path / str(workers))
    alone, helped = (load_checkpoint(tmp_path / workers / FILE_NAME) for workers in "02")
    assert alone.tensors.keys() == helped.tensors.keys()
    assert all(torch.equal(alone.tensors[name], helped.tensors[name]) for name in alone.tensors)  # rng too
    curves = [list(map(without_times, run.progress.curve)) for run in (alone, helped)]
    assert curves[0] == curves[1]
    assert not multiprocessing.active_children()


def test_kill_and_resume_with_workers(tmp_path: Path):
    recipe = with_workers(checkpoint_every=1)
    train(recipe, tmp_path / "undisturbed")
    with pytest.raises(Killed):
        train(recipe, tmp_path / "run", report=kill_at(3))
    assert not multiprocessing.active_children()  # though the error still holds the frames
    train(recipe, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed")


def test_an_error_in_a_worker_is_that_error_and_tells_its_place(
    tmp_path: Path, forked_batch: Callable[[Callable[[int], Batch]], None]
):
    def make(step: int) -> Batch:
        if step == 3:
            raise ZeroDivisionError("no such example")
        return first

    first = make_batch(with_workers().task, with_workers().train, 0)
    forked_batch(make)
    with pytest.raises(ZeroDivisionError, match="no such example") as caught:
        train(with_workers(checkpoint_every=1), tmp_path)
    assert "test_training_data.py" in str(caught.value.__cause__)
    assert load_checkpoint(tmp_path / FILE_NAME).progress.step == 3
    assert not multiprocessing.active_children()


def test_a_worker_that_is_killed_ends_the_run_in_one_sentence(tmp_path: Path):
    def kill_one(progress: Progress, loss: float) -> None:
        if progress.step == 3:
            worker = multiprocessing.active_children()[0].pid
            assert worker is not None
            os.kill(worker, signal.SIGKILL)

    sentence = "^a process that makes the data has ended by itself, .* the last checkpoint can be resumed$"
    with pytest.raises(UserError, match=sentence):
        train(with_workers(checkpoint_every=1, steps=1000, eval_every=1000), tmp_path, report=kill_one)
    assert load_checkpoint(tmp_path / FILE_NAME).progress.step >= 3
    assert not multiprocessing.active_children()


def workers_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def running_training(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A training without end, as a user starts it, in a process group of its own."""
    command = ["-m", "reverie", "train", str(write_tiny(tmp_path)), "--out", str(tmp_path / "run"), "--device", "cpu"]
    for setting in ("data_workers=2", "steps=1000000", "eval_every=1000000"):
        command += ["--set", f"train.{setting}"]
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    process.stderr.readline()  # the first report
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.skipif(not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    ("sent", "kill", "code"),
    [
        (signal.SIGINT, os.killpg, 130),  # as a terminal does it, to all of them
        (signal.SIGINT, os.kill, 130),
        (signal.SIGTERM, os.kill, 143),
        (signal.SIGKILL, os.kill, -signal.SIGKILL),
    ],
)
def test_no_worker_outlives_the_training(
    running_training: subprocess.Popen[str], sent: signal.Signals, kill: Callable[[int, int], None], code: int
):
    workers = workers_of(running_training.pid)
    assert len(workers) == 2
    kill(running_training.pid, sent)
    _, complaints = running_training.communicate(timeout=60)
    assert running_training.returncode == code
    if code > 0:
        assert "--resume goes on from the last checkpoint" in complaints
        assert "Traceback" not in complaints
    end = time.monotonic() + 30
    while any(map(running, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(running, workers))
