"""`reverie watch` as from a shell: what it prints and writes, and how it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import Reverie, assert_one_line, assert_usage, in_empty_folder, the_json
from tiny_recipe import tiny_recipe

from reverie.errors import UNTRAINED, UntrainedWarning
from reverie.memory.history import History
from reverie.memory.memory import sleep_over
from reverie.model import new_model
from reverie.results.checkpoint import FILE_NAME, Progress
from reverie.results.watch.collect import Watch
from reverie.sleep import SleepConfig
from reverie.train.checkpoint import save_checkpoint

reverie = pytest.fixture(in_empty_folder)
PNG = b"\x89PNG"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    recipe = tiny_recipe(sleep={"window_size": 7})
    save_checkpoint(tmp_path / "run" / FILE_NAME, recipe, new_model(recipe.hybrid, 0), [], Progress())
    return tmp_path / "run"


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    model, path = new_model(tiny_recipe().hybrid, 0), tmp_path / "book.safetensors"
    with pytest.warns(UntrainedWarning):
        sleep_over(model, torch.ones(1, 10).long(), SleepConfig(window_size=4), history=History()).save(path)
    return path


def test_a_run(reverie: Reverie, run: Path) -> None:
    done = reverie("watch", run, "--examples", 4)
    assert done.code == 0
    assert "tiny, text 0: 2 windows of 7 tokens slept over, 2 passes" in done.out
    assert "figure in" in done.err
    assert (run / "watch.png").read_bytes().startswith(PNG)


def test_a_run_as_json_with_other_passes(reverie: Reverie, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures" / "three.png"
    done = reverie("watch", run, "--passes", 3, "--tolerance", 0.5, "--example", 7, "--out", out, "--json")
    watch = Watch.model_validate(the_json(done))
    assert (watch.config.num_sleep_passes, watch.config.tolerance, watch.texts) == (3, 0.5, 64)
    assert out.is_file()
    assert not (run / "watch.png").exists()


def test_a_memory(reverie: Reverie, memory: Path) -> None:
    done = reverie("watch", memory, "--json")
    watch = Watch.model_validate(the_json(done))
    assert not watch.remembers
    assert done.err.startswith(f"{UNTRAINED}\n")
    assert [window.tokens for window in watch.windows] == [4, 4, 2]
    assert memory.with_suffix(".watch.png").read_bytes().startswith(PNG)


def test_refuses_what_is_not_there(reverie: Reverie, tmp_path: Path) -> None:
    assert_one_line(reverie("watch", "nowhere"), "neither a run nor a memory at nowhere")
    assert_one_line(reverie("watch", tmp_path), "no run")
    (tmp_path / "text.txt").write_text("Call me Ishmael.")
    assert_one_line(reverie("watch", "text.txt"), "text.txt is not a memory")


def test_refuses_options_of_runs_for_a_memory(reverie: Reverie, memory: Path) -> None:
    assert_one_line(reverie("watch", memory, "--passes", 2), "--passes", "a memory is shown as it was made")


def test_refuses_numbers_out_of_range(reverie: Reverie, run: Path) -> None:
    assert_usage(reverie("watch", run, "--example", -1), "--example")
    assert_usage(reverie("watch", run, "--passes", 0), "--passes")
    assert_one_line(reverie("watch", run, "--example", 10**30), "texts have numbers from 0")
    assert_one_line(reverie("watch", run, "--tolerance", "nan"), "tolerance must be a number above 0")


def test_refuses_a_figure_that_is_none(reverie: Reverie, run: Path) -> None:
    assert_one_line(reverie("watch", run, "--out", "watch.json"), "must end in .png")
