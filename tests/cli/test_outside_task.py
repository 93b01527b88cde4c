"""A task from outside the package, through the commands: it trains, goes on, is evaluated, compared and drawn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Reverie, assert_one_line, in_empty_folder, the_json
from outside import as_in_a_new_process, forget, write_outside
from same_run import Killed, assert_same_run, kill_at
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from reverie.recipe import load_recipe
from reverie.results.checkpoint import find_checkpoint, load_checkpoint
from reverie.talk import load_model
from reverie.talk.shipped import export_model
from reverie.train.run import train

MODULE = "outside_sums"
MISSING = f"task.name is {MODULE}:ModularAddition, but there is no module {MODULE} on Python's path, beside the recipe"


@pytest.fixture
def reverie(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Reverie]:
    (tmp_path / "empty").mkdir()
    with as_in_a_new_process(tmp_path):
        yield in_empty_folder(monkeypatch, capsys, tmp_path / "empty")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The recipe, with the module beside it, in a folder of its own."""
    return write_outside(tmp_path / "mine")


def killed_at(step: int, recipe: Path, out: Path) -> None:
    with pytest.raises(Killed):
        train(load_recipe(recipe), out, report=kill_at(step))


def test_it_trains_goes_on_and_is_evaluated(reverie: Reverie, recipe: Path, tmp_path: Path) -> None:
    whole = reverie("train", recipe, "--out", "whole", "--device", "cpu")
    assert whole.code == 0
    assert "per question by terms k: 1 to 3" in " ".join(whole.out.split())
    killed_at(5, recipe, Path("broken"))
    assert reverie("train", recipe, "--out", "broken", "--device", "cpu", "--resume").code == 0
    assert_same_run(Path("broken"), Path("whole"))
    board = EventAccumulator("whole/tensorboard").Reload()
    assert [event.step for event in board.Scalars("accuracy/depth 3")] == [3, 6]
    trained = the_json(reverie("eval", "whole", "--device", "cpu", "--json"))
    assert list(trained["score"]["by_depth"]) == ["1", "2", "3"]
    assert reverie("plot", "whole/card.json") == (0, "whole/card.png\n", "")
    shown = reverie("tasks", "show", recipe)
    assert "+3?→" in shown.out
    rows = reverie("data", f"{MODULE}:ModularAddition", "--recipe", recipe, "--count", "2", "--out", "rows.jsonl")
    assert rows.code == 0
    assert len(json.loads(Path("rows.jsonl").read_text().splitlines()[0])["tokens"]) == 6
    model = load_model("whole")
    assert model.decode(model.encode("3 +1?")) == "3 +1?"
    assert model.language.max_answer_tokens == 1
    assert model.language.is_question("+1?")


@pytest.mark.slow
def test_it_is_compared_in_processes_of_their_own(reverie: Reverie, recipe: Path) -> None:
    """Which find the module, and so do the processes that make their data."""
    options = "--passes", "1,2", "--seeds", "0", "--out", "here", "--device", "cpu", "--jobs", "1"
    card = the_json(reverie("compare", recipe, *options, "--set", "train.data_workers=1", "--json"))
    assert [result["model"] for result in card["results"]] == ["transformer", "hybrid", "sleep"]
    assert card["recipe"]["task"]["name"] == f"{MODULE}:ModularAddition"
    assert Path("here/figure.png").is_file()
    before = Path("here/hybrid-seed-0/card.json").read_bytes()
    assert reverie("compare", recipe, *options, "--set", "train.data_workers=1").code == 0  # nothing is run again
    assert Path("here/hybrid-seed-0/card.json").read_bytes() == before


def test_without_its_module_all_say_so_and_keep_what_there_is(reverie: Reverie, recipe: Path, tmp_path: Path) -> None:
    killed_at(5, recipe, Path("broken"))
    train(load_recipe(recipe), Path("whole"))
    export_model(Path("whole"), Path("model.safetensors"))
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    module, elsewhere = recipe.with_name(f"{MODULE}.py"), recipe.with_name("elsewhere")
    module.rename(elsewhere)
    forget(tmp_path)
    train_it = "train", recipe, "--out", "broken", "--resume", "--device", "cpu"
    for command in (
        train_it,
        ("eval", "whole"),
        ("plot", "whole/card.json"),
        ("compare", recipe, "--out", "here"),
        ("tasks", "show", recipe),
    ):
        assert_one_line(reverie(*command), MISSING, "put its folder on PYTHONPATH, or the module beside the recipe")
    for place in ("whole", "model.safetensors"):
        with pytest.raises(ValueError, match=MISSING):
            load_model(place)
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    elsewhere.rename(module)
    assert reverie(*train_it).code == 0
    assert_same_run(Path("broken"), Path("whole"))


def test_a_run_brings_no_code_of_its_own(
    reverie: Reverie, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(load_recipe(recipe), Path("run"))
    recipe.with_name(f"{MODULE}.py").unlink()
    Path(f"run/{MODULE}.py").write_text("raise AssertionError")
    forget(tmp_path)
    assert_one_line(reverie("eval", "run"), MISSING)
    monkeypatch.chdir("run")
    for command in (("eval", "."), ("plot", "card.json")):
        assert_one_line(reverie(*command), MISSING)


def test_what_its_module_raises_is_one_sentence(reverie: Reverie, recipe: Path) -> None:
    recipe.with_name(f"{MODULE}.py").write_text("import numpy\nnumpy.absent\n")
    sentence = f"the module {MODULE} cannot be imported: AttributeError: module 'numpy' has no attribute 'absent'"
    assert_one_line(reverie("train", recipe), sentence)


@pytest.mark.slow
def test_in_processes_of_ones_own_from_another_folder(recipe: Path, tmp_path: Path) -> None:
    """`python -m reverie` in a folder that has neither recipe nor module: killed, resumed, by two, and evaluated."""
    away = tmp_path / "away"
    away.mkdir()
    environment = dict(os.environ)

    def reverie(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "reverie", *arguments, "--device", "cpu"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(reverie(*arguments), cwd=away, env=environment, capture_output=True, text=True)

    steps = "--set=train.steps=3000", "--set=train.eval_every=1000"
    going = subprocess.Popen(reverie("train", str(recipe), "--out", "run", *steps), cwd=away)
    until = time.monotonic() + 120
    with as_in_a_new_process(tmp_path):
        load_recipe(recipe)
        while (place := find_checkpoint(away / "run")) is None or load_checkpoint(place).progress.step < 4:
            assert time.monotonic() < until
            assert going.poll() is None
            time.sleep(0.2)
    going.kill()
    going.wait()
    stopped = run("train", str(recipe), "--out", "run", "--resume", "--max-seconds", "1", *steps)
    assert "Traceback" not in stopped.stderr
    assert "--resume goes on" in stopped.stderr
    together = run("train", str(recipe), "--out", "two", "--nproc", "2")
    assert together.returncode == 0, together.stderr
    missing = run("eval", "two")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr.startswith("error: ")
    assert MISSING in missing.stderr
    environment["PYTHONPATH"] = os.pathsep.join([str(recipe.parent), environment.get("PYTHONPATH", "")])
    assert run("eval", "two").returncode == 0
