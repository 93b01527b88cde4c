"""`reverie train --nproc`: a process that dies is named, a signal stops all of them, and the run goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from same_run import assert_close, assert_same_run, read_run_card
from tiny_recipe import tiny_recipe, write_tiny
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from reverie.cli.app import app
from reverie.errors import UserError
from reverie.results.checkpoint import checkpoint_step, checkpoints_in, find_checkpoint
from reverie.results.run import CARD_NAME
from reverie.train import launch as module
from reverie.train.launch import launch, report_error
from reverie.train.run import train

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")]

SETTINGS = {"steps": 24, "batch_size": 192, "checkpoint_every": 4, "eval_every": 12}
_LIMIT_S = 300
KILLS = 20


@dataclass
class Launched:
    """`reverie train --nproc 2` in a folder."""

    out: Path
    process: subprocess.Popen[str]

    def ranks(self) -> dict[int, int]:
        """Process ids."""
        found = {}
        for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            with suppress(OSError):
                for line in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                    if line.startswith(b"RANK="):
                        found[int(line.removeprefix(b"RANK="))] = int(child)
        return found

    def wait_for(self, step: int) -> dict[int, int]:
        """Until a checkpoint of that step is there; the process ids."""
        patience = time.monotonic() + _LIMIT_S
        while (place := find_checkpoint(self.out)) is None or checkpoint_step(place) < step:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < patience
            time.sleep(0.02)
        return self.ranks()

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=_LIMIT_S)
        return self.process.returncode, out, err


class Launcher:
    def __init__(self, folder: Path) -> None:
        self.recipe, self.started = write_tiny(folder), list[Launched]()

    def __call__(self, out: Path, *arguments: str, **settings: int) -> Launched:
        settings = {**SETTINGS, **settings}
        options = [f"--set=train.{key}={value}" for key, value in settings.items()]
        command = [sys.executable, "-m", "reverie", "train", str(self.recipe), f"--out={out}", "--nproc=2"]
        pipe = subprocess.PIPE
        process = subprocess.Popen([*command, *options, *arguments], stdout=pipe, stderr=pipe, text=True)
        self.started.append(Launched(out, process))
        return self.started[-1]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path)
    yield launcher
    for launched in launcher.started:
        if launched.process.poll() is None:
            ranks = launched.ranks().values()
            for pid in (launched.process.pid, *ranks):
                os.kill(pid, signal.SIGKILL)
            launched.process.communicate()


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_a_killed_process_is_named_and_the_run_goes_on(start: Launcher, tmp_path: Path):
    out = tmp_path / "out"
    launched = start(out, "--parallel=fsdp", steps=1000)
    ranks = launched.wait_for(4)
    os.kill(ranks[1], signal.SIGKILL)
    code, printed, told = launched.end()
    place = find_checkpoint(out)
    assert place is not None
    step = checkpoint_step(place)
    # Last: the other rank may be in a collective at that moment, and a library say so before it can be ended.
    error = [line for line in told.splitlines() if not line.startswith("tiny  step")][-1]
    advice = f"the checkpoint of step {step} in {out} can be resumed"
    assert error == f"error: rank 1 of 2 was killed by SIGKILL: {advice}"
    assert (code, printed) == (1, "")
    assert not any(map(alive, ranks.values()))

    goes_on = start(out, "--resume", steps=1000)
    goes_on.wait_for(step + 1)
    goes_on.process.terminate()
    code, printed, told = goes_on.end()
    place = find_checkpoint(out)
    assert place is not None
    stopped = f"stopped after step {checkpoint_step(place)} of 1000 (SIGTERM), saved; the same command with --resume"
    assert (code, printed) == (128 + signal.SIGTERM, "")
    assert [line.split(" goes on")[0] for line in told.splitlines() if "  step " not in line] == [stopped]
    assert {path.name for path in out.iterdir()} == {path.name for path in checkpoints_in(out)} | {"tensorboard"}


def test_restarted_processes_finish_the_run(start: Launcher, tmp_path: Path):
    launched = start(tmp_path / "out", "--max-restarts=1", "--json")
    os.kill(launched.wait_for(8)[0], signal.SIGKILL)
    code, printed, told = launched.end()
    assert code == 0, told
    train(tiny_recipe(train=SETTINGS), tmp_path / "alone")
    ours, theirs = (read_run_card(tmp_path / name) for name in ("out", "alone"))
    assert (ours.processes, ours.parallel) == (2, "ddp")
    assert [point.step for point in ours.curve] == [12, 24]
    assert_close(ours.score, theirs.score, rough=True)
    assert [point.train_loss for point in ours.curve] == pytest.approx([p.train_loss for p in theirs.curve], rel=1e-3)
    assert ours.model_validate_json(printed).score.keys() == theirs.score.keys()
    assert (tmp_path / "out" / CARD_NAME).exists()


def test_killed_at_any_moment_the_run_is_the_same(start: Launcher, tmp_path: Path):
    """The launcher or a process of it: all end, and in the end the run is that which nobody has killed, to the bit."""
    settings = {"steps": 600, "checkpoint_every": 5, "eval_every": 200, "batch_size": 32}
    assert start(tmp_path / "whole", **settings).end()[0] == 0
    out, moments = tmp_path / "killed", random.Random(0)
    for _ in range(KILLS):
        launched = start(out, *(["--resume"] if find_checkpoint(out) else []), **settings)
        wait = time.monotonic() + _LIMIT_S
        while len(ranks := launched.ranks()) < 2 and launched.process.poll() is None and time.monotonic() < wait:
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 8))
        victim = moments.choice([launched.process.pid, *ranks.values()])
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        launched.process.communicate(timeout=_LIMIT_S)
        patience = time.monotonic() + 20
        while any(map(alive, ranks.values())):
            assert time.monotonic() < patience, "a process trains on without its launcher"
            time.sleep(0.05)
    code, _, told = start(out, *(["--resume"] if find_checkpoint(out) else []), **settings).end()
    assert code == 0, told
    assert_same_run(out, tmp_path / "whole")


def test_a_process_that_waits_for_the_others_ends_when_told(tmp_path: Path):
    """One of them may have died before they met: who waits for it hears SIGTERM all the same."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    environment = os.environ | place | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
    command = [sys.executable, "-m", "reverie.train", str(write_tiny(tmp_path)), f"--out={tmp_path / 'out'}"]
    waiting = subprocess.Popen(command, env=environment)
    try:
        patience = time.monotonic() + _LIMIT_S
        while store.num_keys() < 2:  # it has said that it is there
            assert time.monotonic() < patience
            assert waiting.poll() is None
            time.sleep(0.1)
        time.sleep(1)
        waiting.send_signal(signal.SIGTERM)
        waiting.wait(timeout=20)
    finally:
        waiting.kill()


def test_impossible_launches_start_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def try_launch(device: str = "cpu", processes: int = 4) -> str:
        with pytest.raises(UserError) as error:
            launch(["tiny"], processes, tmp_path / "out", torch.device(device), batch_size=8)
        return str(error.value)

    assert try_launch(processes=9).startswith("train.batch_size is 8, but it must be at least 9")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert try_launch("cuda").startswith("4 processes need a GPU each, and there are 2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match=r"^--nproc 4 starts processes of its own: leave it out under torchrun$"):
        app(["train", str(write_tiny(tmp_path)), "--out", str(tmp_path / "out"), "--nproc", "4"])
    assert not (tmp_path / "out").exists()


def test_the_process_that_failed_by_itself_is_the_one_to_name():
    @dataclass
    class Failure:
        exitcode: int
        timestamp: int

    failures = {0: Failure(-15, 1), 1: Failure(143, 1), 2: Failure(-9, 2), 3: Failure(1, 3)}
    assert module._first(failures)[0] == 2


def test_how_a_process_ended(tmp_path: Path):
    assert module._how_it_died(3, 4, -11, tmp_path).startswith(
        "rank 3 of 4 was killed by SIGSEGV, before there was a ch"
    )
    train(tiny_recipe(), tmp_path)
    assert module._how_it_died(0, 2, 1, tmp_path) == (
        f"rank 0 of 2 ended with exit code 1: the checkpoint of step 6 in {tmp_path} can be resumed"
    )


def test_word_is_left_for_a_launcher_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    assert not report_error("it was this")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert report_error("it was this")
    assert "it was this" in (tmp_path / "error.json").read_text()


def test_an_unknown_engine_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"^--parallel must be ddp or fsdp, got 'horovod'$"):
        app(["train", str(write_tiny(tmp_path)), "--parallel", "horovod", "--nproc", "2"])


def test_a_run_is_not_gone_on_with_unasked(tmp_path: Path):
    """Restarted processes would take it for theirs."""
    train(tiny_recipe(train={"steps": 2}), tmp_path)
    for command in (["--nproc", "2", "--max-restarts", "1"], []):
        with pytest.raises(UserError, match="already holds a run: add --resume to go on with it"):
            app(["train", str(write_tiny(tmp_path)), "--out", str(tmp_path), "--device", "cpu", *command])
