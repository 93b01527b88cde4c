"""Trackers: which a run has, what they are told, and that each failure is one sentence."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from outside import as_in_a_new_process
from same_run import Killed, assert_same_run, kill_at
from tiny_recipe import tiny_recipe

from reverie.errors import UserError
from reverie.recipe import Recipe, recipe_again
from reverie.recipe.schema import TRACKERS
from reverie.results.card import load_card
from reverie.results.run import CARD_NAME
from reverie.train import trackers
from reverie.train.run import train
from reverie.train.worker import finished

LINES = """
class Lines:
    def begin(self, out, recipe, first_step):
        self.file = out / "lines.txt"
        kept = self.file.read_text().splitlines() if self.file.exists() else []
        kept = [line for line in kept if int(line.split()[0]) < first_step]
        self.file.write_text("".join(f"{line}\\n" for line in kept))

    def point(self, point):
        if point["step"] == FAILS_AT:
            raise OSError(28, "No space\\nleft")
        with self.file.open("a") as file:
            print(point["step"], point["train_loss"], file=file)

    def end(self):
        (self.file.parent / "ended").touch()
"""


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The module of the tracker."""
    monkeypatch.chdir(tmp_path)
    module = tmp_path / "line_trackers.py"
    module.write_text("FAILS_AT = None\n" + LINES)
    with as_in_a_new_process(tmp_path):
        yield module


def tracked(*names: str, **train: Any) -> Recipe:
    return tiny_recipe(train={"trackers": list(names), "eval_every": 2, "checkpoint_every": 3, **train})


def steps(file: Path) -> list[int]:
    return [int(line.split()[0]) for line in file.read_text().splitlines()]


def test_the_usual_one_is_tensorboard_as_in_recipes_that_say_nothing() -> None:
    recipe = tiny_recipe()
    assert recipe.train.trackers == ("tensorboard",)
    dumped = recipe.model_dump(mode="json")
    del dumped["train"]["trackers"]
    assert recipe_again(dumped) == recipe
    assert set(trackers._OURS) == set(trackers._PACKAGES) == set(TRACKERS)


def test_a_tracker_of_ones_own_has_each_point_once_also_after_a_break(lines: Path, tmp_path: Path) -> None:
    recipe, out = tracked("line_trackers:Lines"), tmp_path / "run"
    with pytest.raises(Killed):
        train(recipe, out, report=kill_at(5))
    assert steps(out / "lines.txt") == [2, 4]  # the checkpoint is of step 3
    assert (out / "ended").exists()
    card = train(recipe, out, resume=True)
    assert steps(out / "lines.txt") == [2, 4, 6] == [point.step for point in card.curve]
    assert [float(line.split()[1]) for line in (out / "lines.txt").read_text().splitlines()] == pytest.approx(
        [point.train_loss for point in card.curve]
    )
    assert not (out / "tensorboard").exists()


def test_trackers_decide_nothing(lines: Path, tmp_path: Path) -> None:
    """A run goes on, and is taken as finished, with others than it began with."""
    first, then = tracked("tensorboard"), tracked("line_trackers:Lines")
    train(first, tmp_path / "whole")
    with pytest.raises(Killed):
        train(first, tmp_path / "run", report=kill_at(5))
    assert finished(then, tmp_path / "run") is None
    train(then, tmp_path / "run", resume=True)
    assert steps(tmp_path / "run" / "lines.txt") == [4, 6]
    assert finished(first, tmp_path / "run") == load_card(tmp_path / "run" / CARD_NAME)
    assert then.same_curve(first)
    assert not then.same_curve(tracked("tensorboard", seed=1))
    with pytest.raises(UserError, match="made by another recipe"):
        train(tracked("line_trackers:Lines", seed=1), tmp_path / "run", resume=True)
    train(tracked(), tmp_path / "none")  # without any
    assert not (tmp_path / "none" / "tensorboard").exists()
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "run", tmp_path / "whole")  # the recipes
    assert load_card(tmp_path / "run" / CARD_NAME).curve[-1].score == (  # pyright: ignore[reportAttributeAccessIssue]
        load_card(tmp_path / "whole" / CARD_NAME).curve[-1].score  # pyright: ignore[reportAttributeAccessIssue]
    )


def test_the_tracker_of_the_documentation_runs(lines: Path, tmp_path: Path) -> None:
    """docs/extending.md"""
    text = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    lines.write_text(re.findall(r"```python\n(from reverie.train.trackers .*?)```", text, flags=re.DOTALL)[0])
    train(tracked("line_trackers:Lines"), tmp_path / "run")
    assert steps(tmp_path / "run" / "lines.txt") == [2, 4, 6]


def test_one_that_fails_ends_the_run_in_a_sentence(lines: Path, tmp_path: Path) -> None:
    lines.write_text("FAILS_AT = 4\n" + LINES)
    with pytest.raises(UserError) as caught:
        train(tracked("line_trackers:Lines", "tensorboard"), tmp_path / "run")
    assert str(caught.value) == "the tracker line_trackers:Lines failed: OSError: [Errno 28] No space left"
    assert (tmp_path / "run" / "ended").exists()
    lines.write_text("FAILS_AT = None\n" + LINES)
    with as_in_a_new_process(tmp_path):
        card = train(tracked("line_trackers:Lines", "tensorboard"), tmp_path / "run", resume=True)
    assert [point.step for point in card.curve] == [2, 4, 6]


@pytest.mark.parametrize("package", TRACKERS)
def test_a_missing_package_is_named_before_a_step_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    sentence = f"^train.trackers has {package}, which needs the package {package}: install it, or leave {package} out$"
    with pytest.raises(UserError, match=sentence):
        train(tracked(package), tmp_path / "run")
    assert os.listdir(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("tensorbord",), 'train.trackers must be of "tensorboard", "wandb" or like "my_module:MyTracker", got "ten'),
        (("wandb", "wandb"), 'train.trackers has "wandb" twice'),
    ],
)
def test_a_wrong_name_is_refused_with_the_recipe(names: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        tracked(*names)


def test_what_is_no_tracker_is_refused_before_a_step_is_taken(lines: Path, tmp_path: Path) -> None:
    lines.write_text("class Half:\n    def begin(self): ...\n\n\ndef begin(): ...")
    for name, sentence in (
        ("line_trackers:Half", "must be a class with begin, point and end: it lacks point, end$"),
        ("line_trackers:begin", "must be a class with begin, point and end: it lacks begin, point, end$"),
        ("line_trackers:Lines", "but the module line_trackers .* has no Lines$"),
        ("no_such:Lines", "train.trackers is no_such:Lines, but there is no module no_such"),
    ):
        with pytest.raises(UserError, match=sentence):
            train(tracked(name), tmp_path / "run")


class FakeRun:
    """A run of wandb: `step` is the first that it lacks."""

    def __init__(self) -> None:
        self.points: dict[int, dict[str, float]] = {}
        self.finished = 0

    @property
    def step(self) -> int:
        return max(self.points, default=-1) + 1

    def log(self, values: dict[str, float], step: int) -> None:
        assert step not in self.points
        self.points[step] = values

    def finish(self) -> None:
        self.finished += 1


def test_wandb_has_one_run_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: dict[str, FakeRun] = {}

    def init(*, id: str, resume: str, name: str, config: dict[str, Any], dir: str) -> FakeRun:
        assert (resume, name, config["train"]["batch_size"]) == ("allow", "tiny", 8)
        return runs.setdefault(id, FakeRun())

    wandb = ModuleType("wandb")
    wandb.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    recipe = tracked("wandb")
    with pytest.raises(Killed):
        train(recipe, tmp_path / "run", report=kill_at(5))
    card = train(recipe, tmp_path / "run", resume=True)
    train(recipe, tmp_path / "other")
    ours, theirs = runs.values()
    assert list(ours.points) == list(theirs.points) == [2, 4, 6]
    assert (ours.finished, theirs.finished) == (2, 1)
    assert [values["loss/train"] for values in ours.points.values()] == pytest.approx(
        [p.train_loss for p in card.curve]
    )
    assert ours.points == theirs.points
    assert {"accuracy/depth 4", "gradient/norm", "sleep/hidden_gradient, pass 2"} <= set(ours.points[2])


def test_a_folder_called_wandb_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    with pytest.raises(UserError, match="needs the package wandb: install it"):
        train(tracked("wandb"), tmp_path)
