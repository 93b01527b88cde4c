"""A run goes on from a checkpoint as it was written, or not at all; the one before it stays until the run is done."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_checkpoint import PROGRESS, RECIPE, assert_refused, trained

import reverie.train.checkpoint
from reverie.errors import OldFileWarning, UserError
from reverie.results.checkpoint import FILE_NAME, Progress, checkpoints_in, find_checkpoint, load_checkpoint
from reverie.train.checkpoint import restore, save_checkpoint, save_run
from reverie.train.distributed import Processes


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    whole = tmp_path_factory.mktemp("run") / FILE_NAME
    save_checkpoint(whole, RECIPE, *trained(), PROGRESS)
    return whole.read_bytes()


@pytest.fixture
def path(tmp_path: Path, saved: bytes) -> Path:
    (tmp_path / FILE_NAME).write_bytes(saved)
    return tmp_path / FILE_NAME


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, str]], None], *, old: bool) -> None:
    """The file with other tensors or another description; `old`: as from before checksums."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        told = dict(file.metadata())
    if old:
        del told["format"], told["sha256"]
    change(tensors, told)
    save_file(tensors, path, metadata=told)


def progress_of(**changes: Any) -> Callable[[dict[str, Any], dict[str, str]], None]:
    def change(tensors: dict[str, Any], told: dict[str, str]) -> None:
        told["progress"] = json.dumps(json.loads(told["progress"]) | changes)

    return change


def without(part: str) -> Callable[[dict[str, Any], dict[str, str]], None]:
    def change(tensors: dict[str, Any], told: dict[str, str]) -> None:
        for name in [name for name in tensors if part in name]:
            del tensors[name]

    return change


def without_one(part: str) -> Callable[[dict[str, Any], dict[str, str]], None]:
    def change(tensors: dict[str, Any], told: dict[str, str]) -> None:
        del tensors[next(name for name in tensors if part in name)]

    return change


def converted(
    part: str, make: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[dict[str, Any], dict[str, str]], None]:
    def change(tensors: dict[str, Any], told: dict[str, str]) -> None:
        name = next(name for name in tensors if part in name)
        tensors[name] = make(tensors[name])

    return change


def added(tensors: dict[str, Any], told: dict[str, str]) -> None:
    tensors["optimizer.0.more.momentum_buffer"] = torch.zeros(2)


DAMAGE: dict[str, Callable[[dict[str, Any], dict[str, str]], None]] = {
    "a negative step": progress_of(step=-1),
    "a step in words": progress_of(step="x"),
    "a step and a half": progress_of(step=1.5),
    "a step of no size": progress_of(step=10**30),
    "no curve": progress_of(curve=None),
    "an empty curve": progress_of(curve=[]),
    "a curve of something else": progress_of(curve=[1]),
    "a curve that goes back": progress_of(curve=[PROGRESS.curve[0], PROGRESS.curve[0]]),
    "a loss that is no number": progress_of(loss_sum=float("nan")),
    "a loss in words": progress_of(loss_sum="0.7"),
    "other losses": progress_of(loss_count=7),
    "an unknown word": progress_of(unheard_of=1),
    "nested progress": lambda tensors, told: told.update(progress="[" * 10_000),
    "nested recipe": lambda tensors, told: told.update(recipe='{"a":' * 10_000),
    "a missing momentum": without_one("momentum_buffer"),
    "no momentum at all": without("momentum_buffer"),
    "half of AdamW": without("exp_avg_sq"),
    "no optimiser": without("optimizer."),
    "no random state": without("rng"),
    "a short random state": converted("rng", lambda x: x[:-1].clone()),
    "a random state of floats": converted("rng", lambda x: x.float()),
    "whole numbers for weights": converted("model.", lambda x: x.int()),
    "half precision": converted("model.", lambda x: x.half()),
    "weights that are no numbers": converted("model.", lambda x: x * torch.nan),
    "a momentum without end": converted("momentum_buffer", lambda x: x + torch.inf),
    "a momentum of whole numbers": converted("momentum_buffer", lambda x: x.int()),
    "a misshapen momentum": converted("momentum_buffer", lambda x: x[:1].clone()),
    "a tensor of nobody": added,
}


@pytest.mark.parametrize("old", [False, True], ids=["", "old"])
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.filterwarnings("ignore::reverie.errors.OldFileWarning")
def test_a_run_does_not_go_on_from_what_is_damaged(path: Path, damage: str, old: bool):
    """With a checksum nothing passes; without one, what no run of this recipe can hold."""
    rewritten(path, DAMAGE[damage], old=old)
    before = path.read_bytes()
    run = trained(steps=0)
    with pytest.raises(UserError) as caught:
        restore(load_checkpoint(path), *run)
    assert "\n" not in str(caught.value)
    assert "delete it" in str(caught.value) or "another model" in str(caught.value)
    assert path.read_bytes() == before


def test_no_bit_of_a_checkpoint_can_flip(path: Path, saved: bytes):
    generator = random.Random(0)
    for _ in range(100):
        place, bit = generator.randrange(len(saved)), generator.randrange(8)
        path.write_bytes(saved[:place] + bytes([saved[place] ^ 1 << bit]) + saved[place + 1 :])
        with pytest.raises(UserError):
            restore(load_checkpoint(path), *trained(steps=0))


def test_of_an_old_checkpoint_one_line_is_said(path: Path):
    rewritten(path, lambda tensors, told: None, old=True)
    with pytest.warns(OldFileWarning, match="from before checkpoints had a checksum"):
        restore(load_checkpoint(path), *trained(steps=0))


def test_a_newer_version_is_refused_by_name(path: Path):
    rewritten(path, lambda tensors, told: told.update(format="reverie checkpoint 3"), old=False)
    assert_refused(path, "was written by a newer reverie, in version 3 of the format: this one reads up to 2")


def test_what_is_written_is_read_again(path: Path, saved: bytes, monkeypatch: pytest.MonkeyPatch):
    """A disk that keeps something else loses nothing: the checkpoint before is still there."""

    def faulty(tensors: dict[str, torch.Tensor], place: Path, metadata: dict[str, str]) -> None:
        save_file({name: x + 1 if name == "rng" else x for name, x in tensors.items()}, place, metadata)

    monkeypatch.setattr(reverie.train.checkpoint, "save_file", faulty)
    with pytest.raises(UserError, match="what is on the disk is not what was written"):
        save_checkpoint(path, RECIPE, *trained(), PROGRESS)
    assert path.read_bytes() == saved


def test_one_bad_file_ends_no_run(tmp_path: Path):
    """The checkpoint before stays until the run is done, and the refusal names it."""
    run = trained()
    for step in (1, 2):
        progress = Progress(step=step, loss_count=step)
        save_run(tmp_path, RECIPE, *run, progress, Processes())
    newest = tmp_path / FILE_NAME
    assert find_checkpoint(tmp_path) == newest
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(
        UserError, match=r"delete it to go on from step 1, which checkpoint-before\.safetensors has whole"
    ):
        load_checkpoint(newest)
    newest.unlink()
    before = find_checkpoint(tmp_path)
    assert before is not None
    assert load_checkpoint(before).progress.step == 1
    done = RECIPE.train.steps
    save_run(tmp_path, RECIPE, *run, Progress(step=done, loss_count=done), Processes())
    assert checkpoints_in(tmp_path) == [tmp_path / FILE_NAME]
