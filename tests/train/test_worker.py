"""A run as a process: events, an error as a sentence, and nothing half-written when it is stopped."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from fake_cards import comparison
from tiny_recipe import tiny_recipe

from reverie.errors import UserError
from reverie.recipe import Recipe, changed
from reverie.results.card import save_card
from reverie.results.checkpoint import BEFORE, FILE_NAME, Progress, load_checkpoint
from reverie.results.run import CARD_NAME
from reverie.train import checkpoint, worker
from reverie.train.run import train
from reverie.train.worker import finished


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """A worker that ignores the signal must fail its test and not end all of them."""
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("not heeded"))
    yield
    signal.signal(signal.SIGTERM, before)


class Told(list[Any]):
    """A connection, which keeps what is sent."""

    send = list.append


def run(recipe: Recipe, out: Path, interval_s: float = -1.0, device: str = "cpu") -> Told:
    told = Told()
    try:
        worker.work(recipe, out, device, cast(Any, told), interval_s)
    except SystemExit as ended:
        told.append(ended.code)
    return told


def stop(progress: Progress, loss: float) -> None:
    if progress.step == 5:
        raise InterruptedError


def test_it_trains_and_tells_every_step(tmp_path: Path):
    told = run(tiny_recipe(), tmp_path)
    assert [event.step for event in told] == [1, 2, 3, 4, 5, 6]
    assert {event.steps for event in told} == {6}
    assert [event.tokens for event in told] == [step * 8 * 16 for step in range(1, 7)]
    assert [event.accuracy is None for event in told] == [True, True, False, False, False, False]
    card = finished(tiny_recipe(), tmp_path)
    assert card is not None
    assert told[-1].accuracy == pytest.approx(card.score["question_accuracy"], rel=1e-4)


def test_the_device_is_passed_on_and_what_is_printed_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    devices: list[str] = []

    def fake(*_: object, device: str, **__: object) -> None:
        devices.append(device)
        print("MKL_VERBOSE")
        print("a warning", file=sys.stderr)

    monkeypatch.setattr(worker, "train", fake)
    for device in ("cpu", "cuda"):
        assert run(tiny_recipe(), tmp_path, device=device) == []
    assert devices == ["cpu", "cuda"]
    assert capfd.readouterr() == ("", "")


def test_events_are_rare_but_for_the_last(tmp_path: Path):
    assert [event.step for event in run(tiny_recipe(), tmp_path, interval_s=1e9)] == [6]


def test_it_goes_on_with_a_run_that_broke_off(tmp_path: Path):
    with pytest.raises(InterruptedError):
        train(tiny_recipe(), tmp_path, report=stop)
    assert run(tiny_recipe(), tmp_path)[0].step == 5  # after the checkpoint of step 4
    assert finished(tiny_recipe(), tmp_path) is not None


def test_an_error_is_a_sentence_and_exit_code_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    *_, sentence, code = run(tiny_recipe(optim={"matrices": {"lr": 1e38}, "rest": {"lr": 1e38}}), tmp_path)
    assert sentence.startswith("training diverged at step ")
    assert code == 2
    monkeypatch.setattr(worker, "train", lambda *_, **__: {}["x"])
    assert run(tiny_recipe(), tmp_path) == ["its process ended (KeyError: 'x')", 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_it_finishes_its_step_and_goes_on_when_it_is_called_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
):
    """Here in the middle of writing a checkpoint."""
    save, calls = checkpoint.save_file, []

    def stopped_halfway(tensors: Any, path: Path, **arguments: Any) -> None:
        calls.append(path)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        save(tensors, path, **arguments)

    monkeypatch.setattr(checkpoint, "save_file", stopped_halfway)
    assert run(tiny_recipe(), tmp_path)[-1] == 128 + number
    assert sorted(os.listdir(tmp_path)) == [BEFORE, FILE_NAME, "tensorboard"]
    assert load_checkpoint(tmp_path / FILE_NAME).progress.step == 4
    assert run(tiny_recipe(), tmp_path)[0].step == 5
    assert finished(tiny_recipe(), tmp_path) is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_before_its_first_step_it_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
):
    def stopped_halfway(tensors: Any, path: Path, **arguments: Any) -> None:
        path.write_bytes(b"half")
        os.kill(os.getpid(), number)

    monkeypatch.setattr(checkpoint, "save_file", stopped_halfway)
    assert run(tiny_recipe(), tmp_path) == [128 + number]
    assert os.listdir(tmp_path) == []


# -- what counts as finished


def test_a_run_is_finished_when_its_card_is_there(tmp_path: Path):
    recipe = tiny_recipe()
    assert finished(recipe, tmp_path) is None
    with pytest.raises(InterruptedError):
        train(recipe, tmp_path, report=stop)
    assert finished(recipe, tmp_path) is None
    train(recipe, tmp_path, resume=True)
    card = finished(recipe, tmp_path)
    assert card is not None
    assert card.steps == 6


@pytest.mark.parametrize("done", [True, False])
def test_a_run_with_other_settings_is_refused(tmp_path: Path, done: bool):
    train(tiny_recipe(), tmp_path)
    if not done:
        (tmp_path / CARD_NAME).unlink()
    with pytest.raises(UserError, match="holds a run with other settings: choose another folder, or delete it"):
        finished(changed(tiny_recipe(), train={"seed": 1}), tmp_path)


def test_a_card_of_another_kind_or_version_is_refused(tmp_path: Path):
    save_card(comparison(), tmp_path / CARD_NAME)
    with pytest.raises(UserError, match="holds a run with other settings"):
        finished(tiny_recipe(), tmp_path)
    save_card(comparison().runs[0], tmp_path / CARD_NAME)  # its recipe is none of ours
    with pytest.raises(UserError, match="holds a run with other settings"):
        finished(tiny_recipe(), tmp_path)


@pytest.mark.slow
def test_what_is_set_for_a_child_is_not_left_in_our_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    before = dict(os.environ)
    with worker.child(tiny_recipe(), tmp_path) as (process, _):
        assert dict(os.environ) == before
        process.kill()
