"""The benchmark of kills on a tiny run: what it writes, and that it would see a difference."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_recipe import tiny_recipe, write_tiny

from reverie.results.checkpoint import FILE_NAME, Checkpoint, checkpoint_metadata, load_checkpoint
from reverie.results.run import CARD_NAME
from reverie.train import worker
from reverie.train.run import train

pytestmark = pytest.mark.slow

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
benchmark: Any = importlib.import_module("kills")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    train(tiny_recipe(), out)
    return out


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, whole: Path
) -> Callable[..., str]:
    """What it prints; its processes are forked, and what `whole` has imported they need not import."""

    def call(*arguments: object) -> str:
        recipe = write_tiny(tmp_path)
        monkeypatch.setattr(worker, "CONTEXT", multiprocessing.get_context("fork"))
        monkeypatch.setattr(sys, "argv", ["kills.py", str(recipe), *map(str, arguments)])
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # it sets these itself, and they must not stay
        monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        benchmark.main()
        return capsys.readouterr().out

    return call


def test_card_and_result(run: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "new" / "kills.json"
    result = json.loads(run("--set", "train.steps=30", "--kills", 4, "--out", out, "--json"))
    assert {key: result[key] for key in ("name", "ratio", "target", "met")} == {
        "name": "reliability/kills", "ratio": 1.0, "target": 1.0, "met": True,
    }  # fmt: skip
    card = json.loads(out.read_text())
    assert card["differing"] == result["details"]["differing"] == []
    assert card["tensors_compared"] > 40
    assert card["recipe"]["train"]["steps"] == result["details"]["steps"] == 30
    assert {"seed", "commit", "date", "hardware", "wall_time_s"} <= card.keys()
    *killed, last = card["starts"]
    struck = [start["killed_after_step"] for start in killed]
    assert result["details"]["killed_after_steps"] == struck
    assert len(struck) == 4
    assert all(0 < step < 30 for step in struck)
    assert last["killed_after_step"] is None
    for start, before in zip(card["starts"][1:], killed, strict=True):
        assert before["killed_after_step"] - 2 < start["from_step"] <= before["killed_after_step"] + 1


def test_without_json_it_is_a_sentence(run: Callable[..., str]) -> None:
    printed = run("--set", "train.steps=20", "--kills", 2)
    assert printed.startswith("tiny, killed 2 times (after steps ")
    assert printed.endswith("), is the same run to the last bit\n")


def rewritten(out: Path, change: Callable[[Checkpoint], None]) -> None:
    """The run with another checkpoint, which is as whole as the one before."""
    checkpoint = load_checkpoint(out / FILE_NAME)
    change(checkpoint)
    told = checkpoint_metadata(checkpoint.recipe, checkpoint.progress, checkpoint.tensors)
    save_file(checkpoint.tensors, out / FILE_NAME, metadata=told)


def with_another_tensor(out: Path) -> None:
    def change(checkpoint: Checkpoint) -> None:
        weight = checkpoint.tensors["model.embedding.weight"]
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))

    rewritten(out, change)


def with_another_curve(out: Path) -> None:
    def change(checkpoint: Checkpoint) -> None:
        checkpoint.progress.curve[0]["train_loss"] += 1e-15

    rewritten(out, change)


def with_another_score(out: Path) -> None:
    card = json.loads((out / CARD_NAME).read_text())
    card["score"]["question_accuracy"] += 0.25
    (out / CARD_NAME).write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        (lambda out: None, []),
        (with_another_tensor, ["model.embedding.weight"]),
        (with_another_curve, ["curve"]),
        (with_another_score, ["score"]),
    ],
)
def test_the_last_bit_counts(tmp_path: Path, whole: Path, change: Callable[[Path], None], differing: list[str]) -> None:
    shutil.copytree(whole, tmp_path / "run")
    change(tmp_path / "run")
    assert benchmark.differences(whole, tmp_path / "run") == differing
    card = {
        "name": "reliability/kills", "recipe": tiny_recipe().model_dump(mode="json"), "differing": differing,
        "starts": [], "tensors_compared": 9, "wall_time_s": 1.0, "hardware": {},
    }  # fmt: skip
    result = benchmark.result(card)
    assert (result["ratio"], result["met"]) == ((0.0, False) if differing else (1.0, True))
    assert ("differs in " in benchmark.sentence(card)) == bool(differing)


@pytest.mark.parametrize("kills", [0, 6])
def test_the_number_of_kills(run: Callable[..., str], kills: int) -> None:
    with pytest.raises(ValueError, match=rf"^--kills must be 1 to 5, .*, got {kills}$"):
        run("--kills", kills)


def test_a_run_that_fails_is_no_result(run: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: a run failed: training diverged at step \d"):
        run(
            "--kills", 2, "--set", "optim.matrices.lr=1e38", "--set", "optim.rest.lr=1e38", "--out", tmp_path / "a.json"
        )
    assert not (tmp_path / "a.json").exists()
