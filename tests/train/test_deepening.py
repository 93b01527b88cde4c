"""Questions grow deeper when what was asked is learnt, and not before; a resumed run sees what it would have seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from same_run import Killed, assert_same_run, kill_at
from tiny_recipe import tiny_recipe

import reverie.train.deepening
import reverie.train.ready
from reverie.errors import UserError
from reverie.recipe import Recipe
from reverie.results.checkpoint import FILE_NAME, Progress, load_checkpoint
from reverie.tasks import Rule110
from reverie.train.batches import make_batch
from reverie.train.deepening import at_end_of_stretch, deepen, deepest
from reverie.train.ready import made_there
from reverie.train.run import train

STRETCH = 4


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (reverie.train.ready, reverie.train.deepening):
        monkeypatch.setattr(module, "STRETCH", STRETCH)


def ladder(below: float = 0.6, **train: Any) -> Recipe:
    return tiny_recipe(
        task={"rollout_steps": [1, 4], "ladder": True},
        sleep={"window_size": 6, "num_sleep_passes": 1},
        train={"deepen_below": below, "steps": 48, "eval_every": 6, "checkpoint_every": 5, "batch_size": 16, **train},
    )


def test_only_a_stretch_below_the_threshold_deepens_and_the_deepest_stays():
    recipe, progress = ladder(below=0.5), Progress()
    found = []
    for step in range(1, 29):
        found.append(deepest(recipe, progress, step - 1))
        progress.step = step
        progress.stretch_loss_sum += 0.6 if step <= 8 else 0.4
        if at_end_of_stretch(recipe, progress):
            deepen(recipe, progress)
    assert found == [1] * 12 + [2] * 4 + [3] * 4 + [4] * 8
    assert progress.stretch_loss_sum == 0


def test_without_a_threshold_the_schedule_holds():
    recipe = tiny_recipe(train={"depth_curriculum": 1.0, "steps": 4})
    assert [deepest(recipe, Progress(), step) for step in range(4)] == [1, 2, 3, 4]
    assert not at_end_of_stretch(recipe, Progress(step=STRETCH))


def test_a_run_climbs_as_it_learns(tmp_path: Path):
    """The easiest threshold is always met, the hardest never."""
    easy = train(ladder(below=5.0), tmp_path / "easy")
    assert [point.depth for point in easy.curve][:4] == [2, 3, 4, 4]
    hard = train(ladder(below=1e-6), tmp_path / "hard")
    assert {point.depth for point in hard.curve} == {1}


@pytest.mark.parametrize("step", [5, 7, 8, 13])
def test_broken_off_anywhere_it_goes_on_as_if_it_had_not_been(tmp_path: Path, step: int):
    recipe = ladder(below=0.69, steps=20)
    whole = train(recipe, tmp_path / "whole")
    assert len({point.depth for point in whole.curve}) > 1
    with pytest.raises(Killed):
        train(recipe, tmp_path / "broken", report=kill_at(step))
    train(recipe, tmp_path / "broken", resume=True)
    assert_same_run(tmp_path / "broken", tmp_path / "whole")


def test_data_made_on_a_device_are_as_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stretch is made when its first batch is wanted, and none of it before."""
    recipe, progress, made = ladder(below=5.0), Progress(), []
    batches = made_there(recipe, 2, None, torch.device("cpu"), lambda step: deepest(recipe, progress, step))
    for step in range(2, 14):
        batch, _ = next(batches)
        assert torch.equal(batch.tokens, make_batch(recipe, step, None, deepest(recipe, progress, step)).tokens)
        made.append(int(batch.depth.max()))
        progress.step = step + 1
        if at_end_of_stretch(recipe, progress):
            deepen(recipe, progress)
    assert made == [1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4]


def test_progress_is_saved(tmp_path: Path):
    recipe = ladder(below=5.0)
    with pytest.raises(Killed):
        train(recipe, tmp_path, report=kill_at(10))
    progress = load_checkpoint(tmp_path / FILE_NAME).progress
    assert (progress.step, progress.deepened) == (10, 2)
    assert 0 < progress.stretch_loss_sum < 2 * 5.0
    assert isinstance(recipe.task, Rule110)


@pytest.mark.parametrize(
    ("train_options", "sentence"),
    [
        ({"depth_curriculum": 0.5}, "deepen_below takes the place of depth_curriculum: leave one of them out"),
        ({"data_workers": 2}, "deepen_below decides too late for data made ahead: set data_workers to 0"),
        ({"deepen_below": 0.0}, "train.deepen_below must be above 0, got 0"),
    ],
)
def test_what_does_not_go_with_it(train_options: dict[str, Any], sentence: str):
    with pytest.raises(UserError, match=sentence):
        tiny_recipe(train={"deepen_below": 0.5, **train_options})
