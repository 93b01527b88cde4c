"""A run as a process: events on stdout, errors in one of them, and nothing half-written when it is stopped."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_cards import comparison
from tiny_recipe import tiny_recipe

from reverie.errors import UserError
from reverie.recipe import Recipe, changed
from reverie.results.card import save_card
from reverie.results.checkpoint import FILE_NAME, Progress, load_checkpoint
from reverie.results.run import CARD_NAME
from reverie.train import checkpoint, worker
from reverie.train.run import train
from reverie.train.worker import Event, finished


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """A worker that ignores the signal must fail its test and not end all of them."""
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("not heeded"))
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_job(tmp_path, monkeypatch, tiny_recipe())


def write_job(folder: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe) -> Path:
    """The job as the only argument; returns the folder of its run."""
    path, out = folder / "job.json", folder / "run"
    path.write_text(
        json.dumps({"recipe": recipe.model_dump(mode="json"), "out": str(out), "device": "cpu"}), encoding="utf-8"
    )
    monkeypatch.setattr(sys, "argv", ["worker", str(path)])
    return out


def stop(progress: Progress, loss: float) -> None:
    if progress.step == 5:
        raise InterruptedError


def events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_it_trains_and_tells_every_step(job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker, "EVENT_INTERVAL_S", -1.0)
    worker.main()
    told = [Event(**event) for event in events(capsys)]
    assert [event.step for event in told] == [1, 2, 3, 4, 5, 6]
    assert {event.steps for event in told} == {6}
    assert [event.tokens for event in told] == [step * 8 * 16 for step in range(1, 7)]
    assert [event.accuracy is None for event in told] == [True, True, False, False, False, False]
    card = finished(tiny_recipe(), job)
    assert card is not None
    assert told[-1].accuracy == pytest.approx(card.score["question_accuracy"], rel=1e-4)


def test_the_device_is_that_of_the_job(job: Path, monkeypatch: pytest.MonkeyPatch):
    content, devices = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), []
    monkeypatch.setattr(worker, "train", lambda *_, device, **__: devices.append(device))
    for device in ("cpu", "cuda"):
        Path(sys.argv[1]).write_text(json.dumps({**content, "device": device}), encoding="utf-8")
        worker.main()
    assert devices == ["cpu", "cuda"]


def test_events_are_rare_but_for_the_last(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(worker, "EVENT_INTERVAL_S", 1000.0)
    monkeypatch.setattr(worker.time, "monotonic", lambda: 5000.0)
    worker.main()
    assert [event["step"] for event in events(capsys)] == [1, 6]


def test_it_goes_on_with_a_run_that_broke_off(job: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(InterruptedError):
        train(tiny_recipe(), job, report=stop)
    worker.main()
    assert events(capsys)[0]["step"] == 5  # behind the checkpoint of step 4
    assert finished(tiny_recipe(), job) is not None


def test_an_error_is_an_event_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    write_job(tmp_path, monkeypatch, tiny_recipe(optim={"muon_lr": 1e38, "adamw_lr": 1e38}))
    with pytest.raises(SystemExit) as caught:
        worker.main()
    assert caught.value.code == 2
    assert events(capsys)[-1]["error"].startswith("training diverged at step ")


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (signal.SIGTERM, "stopped after step 4 of 6 (SIGTERM), saved"),
        (signal.SIGINT, "stopped after step 4 of 6 (Ctrl-C), saved"),
    ],
)
def test_stopped_it_finishes_its_step_and_goes_on_when_it_is_called_again(
    job: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    sentence: str,
):
    """Here in the middle of writing a checkpoint."""
    save, calls = checkpoint.save_file, []

    def stopped_halfway(tensors: Any, path: Path, **arguments: Any) -> None:
        calls.append(path)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        save(tensors, path, **arguments)

    monkeypatch.setattr(checkpoint, "save_file", stopped_halfway)
    with pytest.raises(SystemExit) as caught:
        worker.main()
    assert caught.value.code == 128 + number
    assert capsys.readouterr().err == sentence + "\n"
    assert sorted(os.listdir(job)) == [FILE_NAME, "tensorboard"]
    assert load_checkpoint(job / FILE_NAME).progress.step == 4
    worker.main()
    assert events(capsys)[0]["step"] == 5
    assert finished(tiny_recipe(), job) is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_before_its_first_step_it_leaves_nothing(
    job: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
):
    def stopped_halfway(tensors: Any, path: Path, **arguments: Any) -> None:
        path.write_bytes(b"half")
        os.kill(os.getpid(), number)

    monkeypatch.setattr(checkpoint, "save_file", stopped_halfway)
    with pytest.raises(SystemExit) as caught:
        worker.main()
    assert caught.value.code == 128 + number
    assert os.listdir(job) == []


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
