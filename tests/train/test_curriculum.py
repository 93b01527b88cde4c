"""Questions grow deeper when what was asked is learnt, and not before; a resumed run sees what it would have seen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from same_run import Killed, assert_same_run, kill_at
from tiny_recipe import tiny_recipe

from reverie.errors import UserError
from reverie.recipe import BySuccess, Recipe, load_recipe
from reverie.results.checkpoint import FILE_NAME, Progress, load_checkpoint
from reverie.tasks import DeviceTask, Rule110
from reverie.train import curriculum, data
from reverie.train.curriculum import Curriculum
from reverie.train.data import made_there, make_batch
from reverie.train.run import train

STRETCH = 4


@pytest.fixture(autouse=True, scope="module")
def short_stretches() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (data, curriculum):
            patch.setattr(module, "STRETCH", STRETCH)
        yield


def ladder(below: float = 0.6, **train: Any) -> Recipe:
    return tiny_recipe(
        task={"rollout_steps": [1, 4], "ladder": True},
        sleep={"window_size": 6, "num_sleep_passes": 1},
        train={
            "curriculum": {"loss_below": below},
            "steps": 48,
            "eval_every": 6,
            "checkpoint_every": 5,
            "batch_size": 16,
            **train,
        },
    )


def curriculum_of(recipe: Recipe) -> tuple[Curriculum, Progress]:
    """And the progress that it decides by."""
    progress = Progress()
    return Curriculum(recipe.train, recipe.task.depths(), progress), progress


def test_only_a_stretch_below_the_threshold_deepens_and_the_deepest_stays():
    climb, progress = curriculum_of(ladder(below=0.5))
    found = []
    for step in range(1, 29):
        found.append(climb.deepest(step - 1))
        progress.step = step
        progress.stretch_loss_sum += 0.6 if step <= 8 else 0.4
        if climb.decides():
            climb.decide()
    assert found == [1] * 12 + [2] * 4 + [3] * 4 + [4] * 8
    assert progress.stretch_loss_sum == 0


@pytest.mark.parametrize("share", [0, 0.3, 0.7, 1])
@pytest.mark.parametrize("steps", [4, 10, 97])
def test_over_a_share_of_the_steps_it_goes_from_the_shallowest_to_the_deepest(share: float, steps: int):
    recipe = tiny_recipe(train={"curriculum": share, "steps": steps})
    climb, progress = curriculum_of(recipe)
    depths = [climb.deepest(step) for step in range(steps)]
    assert depths == sorted(depths)
    assert set(depths) <= set(recipe.task.depths())
    assert depths[0] == (1 if share else 4)
    assert depths[-1] == 4
    assert all(depth == 4 for depth in depths[math.ceil(share * steps) :])
    if share * steps > 20:
        stretches = [depths.count(depth) for depth in (1, 2, 3)]
        assert max(stretches) - min(stretches) <= 1
    progress.step = STRETCH
    assert not climb.decides()


def test_a_run_climbs_as_it_learns(tmp_path: Path):
    """The easiest threshold is always met, the hardest never."""
    easy = train(ladder(below=5.0, steps=24), tmp_path / "easy")
    assert [point.depth for point in easy.curve] == [2, 3, 4, 4]
    hard = train(ladder(below=1e-6, steps=12), tmp_path / "hard")
    assert {point.depth for point in hard.curve} == {1}


CLIMBS = ladder(below=0.69, steps=20)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that climbs, trained without a break."""
    folder = tmp_path_factory.mktemp("whole")
    card = train(CLIMBS, folder)
    assert len({point.depth for point in card.curve}) > 1
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 7, 8, 13])
def test_broken_off_anywhere_it_goes_on_as_if_it_had_not_been(tmp_path: Path, whole: Path, step: int):
    with pytest.raises(Killed):
        train(CLIMBS, tmp_path, report=kill_at(step))
    train(CLIMBS, tmp_path, resume=True)
    assert_same_run(tmp_path, whole)


def test_data_made_on_a_device_are_as_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stretch is made when its first batch is wanted, and none of it before."""
    recipe, made = ladder(below=5.0), []
    climb, progress = curriculum_of(recipe)
    assert isinstance(recipe.task, DeviceTask)
    batches = made_there(recipe.task, recipe.train, 6, 2, range(16), torch.device("cpu"), climb.deepest)
    for step in range(2, 14):
        batch, _ = next(batches)
        assert torch.equal(batch.tokens, make_batch(recipe.task, recipe.train, step, None, climb.deepest(step)).tokens)
        made.append(int(batch.depth.max()))
        progress.step = step + 1
        if climb.decides():
            climb.decide()
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
        ({"data_workers": 2}, "train.curriculum by success decides too late for data made ahead: set data_workers to"),
        ({"curriculum": {"loss_below": 0.0}}, "train.curriculum.loss_below must be above 0, got 0"),
        ({"curriculum": {"below": 1.0}}, "train.curriculum.below is not a known key; did you mean"),
        ({"curriculum": {}}, "train.curriculum.loss_below is missing"),
        ({"curriculum": 1.5}, "train.curriculum must be at most 1, got 1.5"),
        ({"curriculum": "slow"}, 'train.curriculum must be a number, got "slow"'),
    ],
)
def test_what_is_wrong_with_it(train_options: dict[str, Any], sentence: str):
    with pytest.raises(UserError, match=sentence):
        ladder(**train_options)


@pytest.mark.parametrize(
    ("earlier", "present"),
    [
        ({"depth_curriculum": 0.75}, 0.75),
        ({"depth_curriculum": 0.0, "deepen_below": 0.1}, BySuccess(loss_below=0.1)),
        ({"depth_curriculum": 0.5, "deepen_below": None}, 0.5),
    ],
)
def test_its_earlier_names_are_read(tmp_path: Path, earlier: dict[str, Any], present: float | BySuccess):
    """Of checkpoints and cards, which have all keys; and of recipes and overrides, over a base with the present one."""
    recipe = tiny_recipe()
    content = recipe.model_dump(mode="json")
    del content["train"]["curriculum"]
    assert Recipe.model_validate({**content, "train": {**content["train"], **earlier}}).train.curriculum == present
    given = [f"train.{key}={value}" for key, value in earlier.items() if value is not None]
    assert load_recipe("depo/nano", given).train.curriculum == present
    (tmp_path / "old.toml").write_text(
        "base = 'depo/nano'\n[train]\n" + "\n".join(x.removeprefix("train.") for x in given)
    )
    assert load_recipe(tmp_path / "old.toml").train.curriculum == present
    assert load_recipe(tmp_path / "old.toml", ["train.curriculum=1"]).train.curriculum == 1
