"""A checkpoint holds all of a run, is whole or absent, and a bad one is told in one sentence and left alone."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_recipe import tiny_recipe
from torch.optim import Optimizer

from reverie.errors import UserError
from reverie.model import HybridLM, new_model
from reverie.recipe import Recipe
from reverie.results.checkpoint import FILE_NAME, Progress, checkpoint_recipe, load_checkpoint
from reverie.train.checkpoint import restore, save_checkpoint
from reverie.train.data import make_batch
from reverie.train.optim import build_optimizers
from reverie.train.schedule import Schedule
from reverie.train.step import take_step

RECIPE = tiny_recipe(model={"layers": ["attn", "gdn", "jet"]})
PROGRESS = Progress(
    step=2,
    tokens=256,
    wall_time_s=0.1 + 0.2,
    curve=[
        {
            "step": 1,
            "tokens": 128,
            "wall_time_s": 0.1,
            "train_loss": 1 / 3,
            "score": {"loss": 2 / 3, "question_accuracy": 0.5, "exact_accuracy": 0.0, "by_depth": {}},
        }
    ],
    loss_sum=1e-17 + 0.7,
    loss_count=1,
)


def trained(recipe: Recipe = RECIPE, steps: int = 2) -> tuple[HybridLM, list[Optimizer]]:
    model = new_model(recipe.hybrid, recipe.train.seed)
    optimizers = build_optimizers(model, recipe.optim)
    for step in range(steps):
        take_step(Schedule.of(recipe), model, optimizers, step, make_batch(recipe.task, recipe.train, step))
    return model, optimizers


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("run") / FILE_NAME
    save_checkpoint(path, RECIPE, *trained(), PROGRESS)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path, written: bytes) -> Path:
    (tmp_path / FILE_NAME).write_bytes(written)
    return tmp_path / FILE_NAME


def test_everything_comes_back(tmp_path: Path):
    path = tmp_path / "deep" / FILE_NAME
    model, optimizers = trained()
    torch.manual_seed(3)
    torch.rand(5)
    save_checkpoint(path, RECIPE, model, optimizers, PROGRESS)
    expected = torch.rand(4)

    fresh, fresh_optimizers = trained(steps=0)
    checkpoint = load_checkpoint(path)
    assert checkpoint.recipe == RECIPE
    assert checkpoint.progress == PROGRESS  # to the last bit of its floats
    restore(checkpoint, fresh, fresh_optimizers)
    assert torch.equal(torch.rand(4), expected)
    for name, parameter in model.named_parameters():
        assert torch.equal(fresh.get_parameter(name), parameter), name
    for mine, theirs in zip(fresh_optimizers, optimizers, strict=True):
        states, others = mine.state_dict()["state"], theirs.state_dict()["state"]
        assert states.keys() == others.keys()
        assert states
        for index in states:
            assert states[index].keys() == others[index].keys()
            assert all(torch.equal(states[index][entry], others[index][entry]) for entry in states[index])
        held = mine.param_groups[0]["params"]
        assert held
        assert all(mine.state[parameter] for parameter in held)  # found by the parameters themselves

    batch = make_batch(RECIPE.task, RECIPE.train, 2)
    losses = [
        take_step(Schedule.of(RECIPE), *run, 2, batch).loss for run in ((model, optimizers), (fresh, fresh_optimizers))
    ]
    assert losses[0] == losses[1]
    assert all(torch.equal(fresh.get_parameter(name), parameter) for name, parameter in model.named_parameters())


def test_before_the_first_step_there_is_no_optimiser_state(tmp_path: Path):
    model, optimizers = trained(steps=0)
    save_checkpoint(tmp_path / FILE_NAME, RECIPE, model, optimizers, Progress())
    checkpoint = load_checkpoint(tmp_path / FILE_NAME)
    assert not any(name.startswith("optimizer.") for name in checkpoint.tensors)
    restore(checkpoint, *trained(steps=0))
    assert checkpoint.progress == Progress()


def test_it_is_plain_safetensors(path: Path):
    with safe_open(path, framework="pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    model = HybridLM(RECIPE.hybrid)
    assert {f"model.{name}" for name in model.state_dict()} | {"rng"} <= names
    assert json.loads(metadata["recipe"]) == RECIPE.model_dump(mode="json")
    assert json.loads(metadata["progress"])["step"] == 2


def test_the_recipe_can_be_read_alone(path: Path):
    assert checkpoint_recipe(path) == RECIPE


def assert_refused(path: Path, *sentence: str) -> None:
    """One sentence, the same from both readers, and the file as it was."""
    before = path.read_bytes() if path.is_file() else None
    for read in (load_checkpoint, checkpoint_recipe):
        with pytest.raises(UserError) as caught:
            read(path)
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
        assert all(part in message for part in sentence), message
    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.01, 0.05, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(path: Path, written: bytes, share: float):
    path.write_bytes(written[: int(share * len(written))])
    assert_refused(path, "is cut short or damaged", "delete it to start the run afresh")


@pytest.mark.parametrize("lost", [1, 8])
def test_a_checkpoint_that_lacks_its_last_bytes_is_refused(path: Path, written: bytes, lost: int):
    path.write_bytes(written[:-lost])
    assert_refused(path, "is cut short or damaged")


@pytest.mark.parametrize("content", [b"no tensors at all", b"\x80\x04\x95 a pickle", b"{}", b"\0" * 100])
def test_what_is_no_safetensors_is_refused(path: Path, content: bytes):
    path.write_bytes(content)
    assert_refused(path, "is cut short or damaged")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "pt"},
        {"recipe": "{}", "progress": "{}"},
        {"recipe": "not JSON", "progress": "{}"},
        {"recipe": RECIPE.model_dump_json(), "progress": "not JSON"},
        {"recipe": RECIPE.model_dump_json(), "progress": '{"unheard_of": 1}'},
        {"recipe": RECIPE.model_dump_json(), "progress": "[1]"},
        {"recipe": RECIPE.model_dump_json().replace('"width"', '"with"'), "progress": "{}"},
    ],
)
def test_safetensors_of_something_else_are_refused(path: Path, metadata: dict[str, str] | None):
    save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
    assert_refused(path, "is not a checkpoint that this version of reverie can read")


def test_a_missing_checkpoint_is_refused(tmp_path: Path):
    assert_refused(tmp_path / FILE_NAME, "there is no checkpoint at")
    (tmp_path / FILE_NAME).mkdir()
    assert_refused(tmp_path / FILE_NAME, "there is no checkpoint at")


def test_weights_of_another_model_are_refused(path: Path):
    other = tiny_recipe(model={"layers": ["attn", "gdn", "jet"], "width": 32})
    with pytest.raises(UserError, match="holds the weights of another model than its recipe describes"):
        restore(load_checkpoint(path), *trained(other, steps=0))


# -- a disk that is full


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_refused_write_leaves_the_checkpoint_before(
    path: Path, written: bytes, monkeypatch: pytest.MonkeyPatch, call: str
):
    monkeypatch.setattr(os, call, full)
    with pytest.raises(UserError, match=rf"^cannot write .*{FILE_NAME}: No space left on device$"):
        save_checkpoint(path, RECIPE, *trained(steps=0), Progress())
    assert path.read_bytes() == written
    assert os.listdir(path.parent) == [FILE_NAME]


@pytest.fixture
def small_disk(tmp_path: Path, written: bytes) -> Iterator[Path]:
    """Room for one checkpoint and a half."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={len(written) * 3 // 2}", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full_leaves_the_checkpoint_before(small_disk: Path):
    path = small_disk / FILE_NAME
    save_checkpoint(path, RECIPE, *trained(), PROGRESS)
    before = path.read_bytes()
    with pytest.raises(UserError, match=rf"^cannot write .*{FILE_NAME}: No space left on device$"):
        save_checkpoint(path, RECIPE, *trained(), Progress(step=9, loss_count=9))
    assert path.read_bytes() == before
    assert os.listdir(small_disk) == [FILE_NAME]
    assert load_checkpoint(path).progress == PROGRESS
    assert load_file(path).keys() == load_checkpoint(path).tensors.keys()
