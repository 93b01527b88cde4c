"""Plans: what is in the folder loads, and every mistake is one sentence."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from reverie.errors import UserError

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"
sys.path.insert(0, str(FOLDER))
plan: Any = importlib.import_module("plan")
SHIPPED = sorted((FOLDER / "plans").glob("*.toml"))

GOOD = """
name = "good"
[[groups]]
name = "t32"
recipe = "rule110/paper-t32"
set = ["train.dtype=bfloat16"]
variants = [{ name = "n1" }, { name = "n2", set = ["sleep.num_sleep_passes=2"], warm_start = "n1" }]
seconds = 10
steps = "fit"
seeds = [0, 1]
evaluations = 10
"""


def load(folder: Path, text: str) -> Any:
    (folder / "plan.toml").write_text(text, encoding="utf-8")
    return plan.load_plan(folder / "plan.toml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_plan_loads(path: Path) -> None:
    loaded = plan.load_plan(path)
    assert loaded.plan.name == path.stem
    names = [run.name for group in loaded.plan.groups for run in loaded.runs(group, 100)]
    assert len(names) == len(set(names))


def test_runs_of_a_group_differ_in_their_settings_alone(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOD)
    runs = loaded.runs(loaded.plan.groups[0], 95)
    assert [run.name for run in runs] == [
        "t32/n1-seed-0", "t32/n2-seed-0", "t32/n1-seed-1", "t32/n2-seed-1",
    ]  # fmt: skip
    assert {run.recipe.train.steps for run in runs} == {95}
    assert {run.recipe.train.eval_every for run in runs} == {10}
    assert [run.recipe.sleep.num_sleep_passes for run in runs] == [1, 2, 1, 2]
    assert [run.recipe.train.seed for run in runs] == [0, 0, 1, 1]
    assert [run.source for run in runs] == [None, "t32/n1-seed-0", None, "t32/n1-seed-1"]
    assert runs[3].recipe.train.init_from == "runs/t32/n1-seed-1"
    # What is measured before there is a run to begin with does not begin with one.
    assert all(recipe.train.init_from is None for recipe in loaded.variants(loaded.plan.groups[0]).values())


def test_a_recipe_may_lie_beside_the_plan(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('base = "rule110/paper-t32"\n')
    loaded = load(tmp_path, GOOD.replace("rule110/paper-t32", "own.toml"))
    assert loaded.variants(loaded.plan.groups[0])["n1"].name == "own"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("seeds", "seed"), "groups[0].seed is not a known key; did you mean seeds?"),
        (("warm_start", "warmstart"), "groups[0].variants[1].warmstart is not a known key; did you mean warm_start?"),
        (('steps = "fit"', 'steps = "all"'), 'groups[0].steps must be "fit" or an integer, at least 1, got "all"'),
        (('steps = "fit"', "steps = 0"), 'groups[0].steps must be "fit" or an integer, at least 1, got 0'),
        (('steps = "fit"', "steps = 5"), 'groups[0]: seconds belongs to steps = "fit", and to nothing else'),
        (("seconds = 10\n", ""), 'groups[0]: seconds belongs to steps = "fit", and to nothing else'),
        (("seconds = 10", "seconds = 0"), "groups[0].seconds must be above 0, got 0"),
        (('name = "n2"', 'name = "n1"'), 'groups[0]: variants must have different names, "n1" is there twice'),
        (('name = "n2"', 'name = "N 2"'), "groups[0].variants[1].name must be of small letters, digits, dots"),
        (('warm_start = "n1"', 'warm_start = "n2"'), "warm_start of t32/n2 must name a run before it, t32/n1"),
        (("dtype=bfloat16", "dtype=half"), "group t32, variant n1: train.dtype must be"),
        (("num_sleep_passes=2", "num_sleep_pass=2"), "group t32, variant n2: sleep.num_sleep_pass is not a known key"),
        (("[[groups]]", "[groups]"), "groups must be a list"),
        (("seeds = [0, 1]", "seeds = [1, 1]"), 'groups[0]: seeds must have different names, "1" is there twice'),
        (('name = "good"', "name = good"), "is not valid TOML"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    assert GOOD.count(change[0]) >= 1
    with pytest.raises(UserError) as error:
        load(tmp_path, GOOD.replace(*change, 1))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no plan .*nothing\.toml; benchmarks/gpu/plans has .*rule110"):
        plan.load_plan(tmp_path / "nothing.toml")
