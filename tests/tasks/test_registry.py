"""Tasks by name: which classes are tasks, and that a recipe's task comes back under the name that it was asked by."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from outside import as_in_a_new_process, write_outside
from pydantic import BaseModel, ConfigDict, TypeAdapter

from reverie.errors import UserError
from reverie.recipe import Recipe, changed, load_recipe, recipe_again
from reverie.tasks import TASKS, AnyTask, Rule110, TaskSettings, find_task, register_task, task_names
from reverie.tasks.registry import GROUP


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    known = dict(TASKS)
    with as_in_a_new_process(tmp_path):
        yield
    TASKS.clear()
    TASKS.update(known)


def with_task(folder: Path, code: str, **task: Any) -> Recipe:
    """The recipe of the example's task, of a module whose code goes on so, and with other settings."""
    path = write_outside(folder, "going_on")
    module = folder / "going_on.py"
    module.write_text(module.read_text(encoding="utf-8").split("\nif __name__")[0] + code, encoding="utf-8")
    return load_recipe(path, [f"task.{key}={json.dumps(value)}" for key, value in task.items()])


NAMED = '\n\nclass Named(ModularAddition):\n    name: str = "sums"\n    widths: list[int] = []\n'
PLAIN = """

from pydantic import BaseModel, ConfigDict


class Plain(BaseModel):
    model_config = ConfigDict(frozen=True)
    num_terms: int = 3
    language = TaskSettings.language
    answer_is_last: ClassVar[bool] = False
    depth_name: ClassVar[str] = "terms"
    modulus: ClassVar[int] = 5
    sequence_length: ClassVar[int] = 6


for member in ("vocab_size", "batch", "depths", "chance", "chance_exact", "token_names", "sections"):
    setattr(Plain, member, vars(ModularAddition)[member])
"""


@pytest.mark.parametrize(("code", "name"), [("", "ModularAddition"), (NAMED, "Named"), (PLAIN, "Plain")])
def test_a_task_keeps_the_name_it_was_asked_for_by(tmp_path: Path, code: str, name: str) -> None:
    recipe = with_task(tmp_path, code, name=f"going_on:{name}")
    assert recipe.task.name == f"going_on:{name}"
    assert type(recipe.task).__name__ == name
    assert recipe.model.vocab_size == recipe.task.vocab_size == 8
    dumped = recipe.model_dump(mode="json")
    assert dumped["task"]["name"] == f"going_on:{name}"
    assert json.loads(recipe.model_dump_json()) == dumped
    again = [Recipe.model_validate(dumped), recipe_again(json.dumps(dumped)), pickle.loads(pickle.dumps(recipe))]
    again += [changed(recipe, train={"seed": 0})]
    assert all(one == recipe and one.task.name == recipe.task.name for one in again)
    assert changed(recipe, task={"num_terms": 2}) != recipe


def test_settings_are_those_of_json(tmp_path: Path) -> None:
    """Lists may be lists, and nothing is quietly converted."""
    recipe = with_task(tmp_path, NAMED, name="going_on:Named", widths=[1, 2])
    assert recipe.model_dump()["task"]["widths"] == [1, 2]
    for key, value, sentence in (
        ("num_terms", "3", 'task.num_terms must be an integer, got "3"'),
        ("num_terms", 0, "task.num_terms must be at least 1, got 0"),
        ("num_term", 3, "task.num_term is not a known key; did you mean task.num_terms?"),
    ):
        with pytest.raises(UserError) as caught:
            with_task(tmp_path, NAMED, name="going_on:Named", **{key: value})
        assert str(caught.value) == sentence


def test_a_task_may_be_given_as_it_is(tmp_path: Path) -> None:
    recipe = with_task(tmp_path, "")
    kind: Any = type(recipe.task)
    given = kind(num_terms=3)
    assert Recipe.model_validate({**dict(recipe), "task": given}) == recipe
    assert TypeAdapter(AnyTask).validate_python(Rule110(rollout_steps=3)).name == "rule110"

    class Local(kind): ...

    with pytest.raises(ValueError, match="cannot be found again: put its class into a module, or register it"):
        Recipe.model_validate({**dict(recipe), "task": Local()})


def test_a_registered_task_goes_by_its_own_name(tmp_path: Path) -> None:
    registered = NAMED + "\n\nimport reverie\nreverie.register_task(Named)\n"
    asked = with_task(tmp_path, registered, name="going_on:Named")
    assert asked.task.name == "going_on:Named"  # for a process that has not registered it
    assert find_task("sums") is type(asked.task)
    recipe = changed(asked, task={"name": "sums"})
    assert recipe.model_dump()["task"]["name"] == "sums"
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert "sums" in task_names()


def test_a_name_belongs_to_one_class() -> None:
    class Other(Rule110): ...

    with pytest.raises(UserError, match=r"Other cannot be the task rule110, which is reverie.tasks.rule110:Rule110: "):
        register_task(Other)
    assert register_task(Rule110) is Rule110
    assert TASKS["rule110"] is Rule110


class Unfinished(TaskSettings):
    def depths(self) -> range:
        return range(1)


class Thawed(Rule110):
    model_config = ConfigDict(frozen=False)


class Nameless(Rule110):
    name: Literal["a:b"] = "a:b"  # pyright: ignore[reportIncompatibleVariableOverride]


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (Unfinished, "Unfinished lacks batch, chance, chance_exact, sections, token_names, vocab_size$"),
        (Thawed, 'Thawed is not frozen: its model_config needs "frozen": True$'),
        (Nameless, "Nameless needs a field name whose default is its name as a task, without a colon$"),
        (BaseModel, 'BaseModel is not frozen: its model_config needs "frozen": True$'),
        (int, "register_task takes a frozen pydantic model with the members of .*; int is another class$"),
        (3, "; int is no class$"),
    ],
)
def test_what_is_no_task_is_refused_in_a_sentence(task: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        register_task(task)


def test_a_recipe_says_what_its_task_lacks(tmp_path: Path) -> None:
    code = "\n\nclass Half(TaskSettings): ...\n"
    with pytest.raises(UserError, match=r"^task.name is going_on:Half, which must be .*; going_on:Half lacks batch"):
        with_task(tmp_path, code, name="going_on:Half")
    with pytest.raises(UserError, match=r"^task.name is going_on:Nothing, but the module .* has no Nothing"):
        with_task(tmp_path, code, name="going_on:Nothing")


def test_installed_packages_bring_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, site = write_outside(tmp_path / "recipes", "unused"), tmp_path / "site"
    write_outside(site, "sums_package")
    info = site / "sums-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sums\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nsums = sums_package:ModularAddition\nlost = no_such:Task\n")
    monkeypatch.syspath_prepend(site)
    assert {"sums", "lost"} < set(task_names())
    assert "sums_package" not in sys.modules
    recipe = load_recipe(path, ["task.name=sums"])
    assert type(recipe.task).__module__ == "sums_package"
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert recipe.model_dump()["task"]["name"] == "sums"
    with pytest.raises(UserError, match=r"^the task lost is no_such:Task, but there is no module no_such on"):
        load_recipe(path, ["task.name=lost"])
    with pytest.raises(UserError, match=r"^task.name must be .*, sums or lost, got \"sum\"; did you mean sums\?$"):
        load_recipe(path, ["task.name=sum"])
