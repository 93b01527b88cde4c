"""Asked to stop, training finishes its step, saves and says how to go on; the run that goes on is the same run."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TextIO

import pytest
from same_run import assert_same_run
from tiny_recipe import TOML, tiny_recipe

from reverie.cli import app as cli
from reverie.interrupts import Stopped, Terminated, exit_code, sigterm_interrupts, stop_requests
from reverie.recipe import Recipe, TrainConfig, load_recipe
from reverie.results.checkpoint import BEFORE, FILE_NAME, Progress, load_checkpoint
from reverie.results.run import CARD_NAME
from reverie.tasks import Batch, Task
from reverie.train import checkpoint, data, run
from reverie.train import step as step_module
from reverie.train.checkpoint import LOCK_NAME
from reverie.train.data import make_batch
from reverie.train.run import train

TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """A signal that nobody heeds must fail its test and not end all of them."""
    before = {number: signal.signal(number, lambda *_: pytest.fail("not heeded")) for number in (TERM, INT)}
    yield
    for number, old in before.items():
        signal.signal(number, old)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    train(tiny_recipe(), out)
    return out


# -- requests


@pytest.mark.parametrize("sent", [[TERM], [INT], [INT, TERM], [TERM, TERM, INT]])
def test_the_first_signal_is_the_request_and_nothing_is_interrupted(sent: list[signal.Signals]):
    handlers = [signal.getsignal(number) for number in (TERM, INT)]
    with stop_requests() as stop:
        assert stop.requested is None
        for number in sent:
            signal.raise_signal(number)
        assert stop.requested is sent[0]
    assert [signal.getsignal(number) for number in (TERM, INT)] == handlers


def test_control_c_for_the_second_time_interrupts_as_usual():
    signal.signal(INT, signal.default_int_handler)
    with stop_requests() as stop:
        signal.raise_signal(INT)
        assert stop.requested is INT
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(INT)
        assert exit_code(caught.value) == 130


def test_an_ignored_signal_stays_ignored():
    signal.signal(INT, signal.SIG_IGN)
    with stop_requests() as stop:
        signal.raise_signal(INT)
        assert stop.requested is None
        signal.raise_signal(TERM)
        assert stop.requested is TERM
    assert signal.getsignal(INT) is signal.SIG_IGN


def test_in_another_thread_nothing_is_requested():
    handlers, seen = [signal.getsignal(number) for number in (TERM, INT)], []

    def look() -> None:
        with stop_requests() as stop, sigterm_interrupts():
            seen.append(([signal.getsignal(number) for number in (TERM, INT)], stop.requested))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [(handlers, None)]


def test_outside_the_loop_sigterm_is_like_control_c():
    with sigterm_interrupts(), pytest.raises(KeyboardInterrupt) as caught:
        signal.raise_signal(TERM)
    assert isinstance(caught.value, Terminated)
    assert exit_code(caught.value) == 143


def test_a_request_inside_an_interruption_s_reach_is_still_a_request():
    with sigterm_interrupts(), stop_requests() as stop:
        signal.raise_signal(TERM)
        assert stop.requested is TERM


# -- training


def sender(number: signal.Signals, step: int) -> Callable[[Progress, float], None]:
    def report(progress: Progress, loss: float) -> None:
        if progress.step == step:
            signal.raise_signal(number)

    return report


def assert_stopped(out: Path, number: signal.Signals, step: int, undisturbed: Path, **arguments: Any) -> None:
    """Training stops after that step, with everything saved, and goes on to the same end."""
    with pytest.raises(Stopped) as caught:
        train(tiny_recipe(), out, **arguments)
    assert (caught.value.signal, caught.value.step) == (number, step)
    assert exit_code(caught.value) == 128 + number
    name = {INT: "Ctrl-C", TERM: "SIGTERM"}[number]
    assert str(caught.value) == f"stopped after step {step} of 6 ({name}), saved"
    assert sorted(os.listdir(out)) == [BEFORE, FILE_NAME, "tensorboard"]
    assert load_checkpoint(out / FILE_NAME).progress.step == step
    train(tiny_recipe(), out, resume=True)
    assert_same_run(out, undisturbed)


@pytest.mark.parametrize("number", [TERM, INT])
@pytest.mark.parametrize("step", [1, 3, 4])
def test_the_step_is_finished_and_saved(tmp_path: Path, number: signal.Signals, step: int, undisturbed: Path):
    """With a checkpoint every two steps and a point of the curve at the third."""
    assert_stopped(tmp_path, number, step, undisturbed, report=sender(number, step))


@pytest.mark.parametrize(("function", "calls", "step"), [("take_step", 5, 5), ("evaluate", 1, 3)])
def test_a_signal_within_a_step_or_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, calls: int, step: int, undisturbed: Path
):
    signal_at_call(monkeypatch, run if function == "evaluate" else step_module, function, calls)
    assert_stopped(tmp_path, TERM, step, undisturbed)


def signal_at_call(patch: pytest.MonkeyPatch, module: Any, function: str, call: int) -> None:
    original, calls = getattr(module, function), []

    def signalled(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        result = original(*arguments, **keywords)
        if len(calls) == call:
            signal.raise_signal(TERM)
        return result

    patch.setattr(module, function, signalled)


def test_a_signal_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Path):
    signal_at_call(monkeypatch, checkpoint, "save_file", 3)  # of step 4
    assert_stopped(tmp_path, TERM, 4, undisturbed)


def test_processes_that_make_data_may_hear_the_signal_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Path
):
    def dying(task: Task, config: TrainConfig, step: int, *rest: Any) -> Batch:
        if step == 5:
            signal.raise_signal(TERM)
            raise BrokenProcessPool
        return make_batch(task, config, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(data, "make_batch", dying)
        with pytest.raises(Stopped, match=r"stopped after step 5 of 6 \(SIGTERM\), saved"):
            train(tiny_recipe(), tmp_path)
    train(tiny_recipe(), tmp_path, resume=True)
    assert_same_run(tmp_path, undisturbed)


def test_stopped_at_every_step(tmp_path: Path, undisturbed: Path):
    for step in range(1, 6):
        with pytest.raises(Stopped):
            train(tiny_recipe(), tmp_path, resume=step > 1, report=sender(TERM, step))
    train(tiny_recipe(), tmp_path, resume=True)
    assert_same_run(tmp_path, undisturbed)


def test_after_the_last_step_the_run_is_finished(tmp_path: Path, undisturbed: Path):
    train(tiny_recipe(), tmp_path, report=sender(TERM, 6))
    assert_same_run(tmp_path, undisturbed)


def test_before_the_first_step_and_in_the_last_evaluation_it_ends_at_once_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Path
):
    with monkeypatch.context() as patch, sigterm_interrupts():
        signal_at_call(patch, checkpoint, "save_file", 1)
        with pytest.raises(Terminated):
            train(tiny_recipe(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch, sigterm_interrupts():
        signal_at_call(patch, run, "evaluate", 3)
        with pytest.raises(Terminated):
            train(tiny_recipe(), tmp_path)
    assert not (tmp_path / CARD_NAME).exists()
    train(tiny_recipe(), tmp_path, resume=True)
    assert_same_run(tmp_path, undisturbed)


# -- processes of their own


def long_recipe(folder: Path) -> Recipe:
    """Long enough to be stopped in the middle; with processes that make its data."""
    path = folder / "tiny.toml"
    text = TOML.replace("steps = 6", "steps = 80").replace("eval_every = 3", "eval_every = 20")
    path.write_text(text.replace("checkpoint_every = 2", "checkpoint_every = 1000\ndata_workers = 1"), encoding="utf-8")
    return load_recipe(str(path))


def start(folder: Path) -> tuple[int, TextIO]:
    """The command line, the head of its process group: its id and its stderr. Forked, which saves importing torch."""
    recipe, (reading, writing) = str(folder / "tiny.toml"), os.pipe()
    long_recipe(folder)
    child = os.fork()
    if child == 0:
        os.setpgrp()
        for number in (TERM, INT):
            signal.signal(number, signal.SIG_DFL if number == TERM else signal.default_int_handler)
        sys.argv = ["reverie", "train", recipe, "--out", str(folder / "run"), "--device", "cpu"]
        sys.stdout = sys.stderr = os.fdopen(writing, "w", buffering=1)
        code = 1
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    return child, os.fdopen(reading)


@pytest.fixture(scope="module")
def long_undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("long")
    train(long_recipe(tmp_path_factory.mktemp("recipe")), out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("number", [TERM, INT])
def test_a_process_says_how_to_go_on(tmp_path: Path, number: signal.Signals, long_undisturbed: Path):
    """The whole process group hears it, as from a terminal or from timeout(1): those that make the data too."""
    process, stderr = start(tmp_path)
    stderr.readline()  # the first report
    os.killpg(process, number)
    complaints = stderr.read()
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 128 + number
    out = tmp_path / "run"
    step = load_checkpoint(out / FILE_NAME).progress.step
    assert 1 <= step < 80
    name = {INT: "Ctrl-C", TERM: "SIGTERM"}[number]
    assert complaints.splitlines()[-1] == (
        f"stopped after step {step} of 80 ({name}), saved; "
        f"the same command with --resume goes on from the last checkpoint in {out}"
    )
    assert "Traceback" not in complaints
    assert not (out / LOCK_NAME).exists()
    train(load_recipe(str(tmp_path / "tiny.toml")), out, resume=True)
    assert_same_run(out, long_undisturbed, but="rng")  # nothing draws from it, and processes begin with their own
