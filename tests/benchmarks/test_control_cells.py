"""Cells of controls: what they cost, and how they run, go on, and become a card."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from texts_apart import assert_texts_apart
from tiny_recipe import tiny_recipe, write_tiny

from reverie.bench import account
from reverie.errors import UserError
from reverie.recipe import Recipe, changed
from reverie.results.card import RunCard, load_card
from reverie.results.run import evaluate_run
from reverie.train.data import make_batch
from reverie.train.run import train

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
cells: Any = importlib.import_module("controls.cells")
costs: Any = importlib.import_module("controls.costs")
cards: Any = importlib.import_module("controls.card")
program: Any = importlib.import_module("controls.__main__")

LAYERS = ("attn", "gdn", "attn", "gdn")


def cell_of(name: str, recipe: Recipe, runs: Path = Path(), steps: int = 6) -> Any:
    return cells.cell_of(recipe, name, 0, runs, lambda what: steps)


@pytest.mark.parametrize("name", ["n1", "n4", "deep", "full-context"])
def test_operations_are_those_of_the_account(name: str) -> None:
    sizes = {"layers": LAYERS, "width": 48, "mlp_width": 128, "key_size": 16, "value_size": 32}
    recipe = tiny_recipe(task={"num_states": 8, "width": 48}, sleep={"window_size": 98}, model=sizes)
    cell = cell_of(name, recipe)
    batch = make_batch(recipe.task, recipe.train, 0)
    tokens = batch.tokens.shape[1]
    windows = cell.recipe.sleep.window_size
    asked = tuple(bool(part.any()) for part in batch.loss_mask.split(windows, dim=1))
    work = account.Work(
        cell.recipe.hybrid, cell.recipe.sleep, cell.recipe.train.backward, 8, asked, int(batch.loss_mask.sum())
    )
    expected = account.operations(work._replace(tokens=tokens)).total + account.muon_operations(cell.recipe.hybrid)
    assert costs.step_operations(cell) == pytest.approx(expected, rel=0.05)


def test_operations_of_reading_and_of_an_answer() -> None:
    recipe = tiny_recipe()
    found = {name: costs.costs(cell_of(name, recipe), recipe) for name in cells.CONTROLS}
    for name in ("n2", "n4", "from-first", "from-first-test", "n1-time"):
        assert found[name].answer == found["n1"].answer  # sleep costs nothing awake
    for name in ("awake", "deep"):
        assert found[name].answer == pytest.approx(4 * found["n1"].answer, rel=0.05)
    assert found["awake"].reading == found["n1"].reading
    assert found["from-first"] == found["n4"]
    assert found["n1"].reading < found["n2"].reading < found["n4"].reading


def test_as_many_operations_or_as_much_time_as_four_passes(tmp_path: Path) -> None:
    recipe = tiny_recipe(train={"steps": 1000})
    pair = {name: cell_of(name, recipe) for name in ("n1", "n4")}
    steps = costs.more_steps(recipe, tmp_path / "pace", pair.__getitem__, "operations")
    one, four = (costs.step_operations(cell) for cell in pair.values())
    assert abs(steps * one - 1000 * four) <= one / 2
    (tmp_path / "pace").write_text(json.dumps({"n1": 0.5, "n4": 0.8}))
    assert costs.more_steps(recipe, tmp_path / "pace", pair.__getitem__, "time") == 1600
    for damaged in ("{", "[]", '{"n1": "fast"}'):
        (tmp_path / "pace").write_text(damaged)
        with pytest.raises(UserError, match="delete it"):
            costs.more_steps(recipe, tmp_path / "pace", pair.__getitem__, "time")


def test_time_is_measured_once_and_four_passes_take_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "ROUNDS", 5)
    pair = {name: cell_of(name, tiny_recipe()) for name in ("n1", "n4")}
    found = costs.seconds_a_step(pair, tmp_path / "pace")
    assert 0 < found["n1"] < found["n4"]
    assert costs.seconds_a_step(pair, tmp_path / "pace") == found


def test_a_control_that_matches_sleep_is_named_first() -> None:
    def summed(name: str, *accuracies: float) -> dict[str, Any]:
        took = dict.fromkeys(("training", "reading_a_text", "awake_per_answer"), 1.0)
        return {"label": cells.CONTROLS[name].label, "parameters": 1, "steps": 1, "operations": took} | {
            "accuracies": list(accuracies)
        }

    made = {"n1": summed("n1", 0.5, 0.6), "n4": summed("n4", 0.9, 1.0), "deep": summed("deep", 1.0, 0.88)}
    card = {"name": "tiny", "deepest": "4", "controls": made}
    assert cards.rivals(card) == ["N = 1, 4 × the blocks"]
    assert cards.text(card).startswith("tiny, depth 4. Within 2 points of N = 4 or above: N = 1, 4 × the blocks.\n")
    assert "| N = 1, 4 × the blocks | 94.0 ± 8.5 | -1.0 [-12.0, +10.0] |" in cards.table(card)
    del made["deep"]
    assert "No control is within" in cards.text(card)


# Runs


def run(name: str, runs: Path, **more: Any) -> RunCard:
    return cells.run(cell_of(name, tiny_recipe(), runs), lambda other: cell_of(other, tiny_recipe(), runs), **more)


def test_sleep_among_the_controls_is_what_the_library_trains(tmp_path: Path) -> None:
    ours = run("n4", tmp_path)
    theirs = train(changed(tiny_recipe(), sleep={"num_sleep_passes": 4}), tmp_path / "theirs")
    assert ours.score["loss"] == pytest.approx(theirs.score["loss"], rel=1e-4)  # the file's is rounded
    assert ours.curve[-1].train_loss == pytest.approx(theirs.curve[-1].train_loss, rel=1e-4)
    assert load_card(tmp_path / "tiny/n4/seed-0/card.json").settings == {"control": "N = 4"}  # pyright: ignore


def test_a_control_of_the_test_alone_has_the_weights_of_sleep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeroed = run("zeroed", tmp_path)  # and trains N = 4 first
    sleeping = run("n4", tmp_path)
    assert zeroed.curve == sleeping.curve
    assert zeroed.score["loss"] != sleeping.score["loss"]
    monkeypatch.setattr(cells, "PASSES", 2)  # of which the last starts from pass 1 anyway
    two = evaluate_run(tmp_path / "tiny/n4/seed-0", num_sleep_passes=2)
    assert run("from-first-test", tmp_path).score["loss"] == pytest.approx(two.score["loss"], abs=1e-4)


@pytest.mark.parametrize("name", ["awake", "from-first"])
def test_a_run_that_was_stopped_goes_on_to_the_same_model(tmp_path: Path, name: str) -> None:
    def stop(name: str, step: int, steps: int, loss: float) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        run(name, tmp_path / "stopped", report=stop)
    steps = list[int]()
    again = run(name, tmp_path / "stopped", report=lambda name, step, steps_, loss: steps.append(step))
    assert steps[0] > 3
    assert again.score == run(name, tmp_path / "whole").score
    assert run(name, tmp_path / "stopped").date == again.date  # it is there now


def arguments(folder: Path, *more: str) -> list[str]:
    return ["--tasks", str(write_tiny(folder)), "--runs", str(folder / "runs"), "--seeds", "0", *more]


def test_cells_become_a_card_and_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = arguments(tmp_path, "--controls", "n1,n4,zeroed,n1-operations", "--out", str(tmp_path / "out"))
    assert program.main(some) == 0
    card = json.loads((tmp_path / "out/tiny.json").read_text())
    assert (tmp_path / "out/tiny.png").stat().st_size > 1000
    assert list(card["controls"]) == ["n1", "n4", "zeroed", "n1-operations"]
    assert cards.text(card) in capsys.readouterr().out
    more, sleeping = card["controls"]["n1-operations"], card["controls"]["n4"]
    assert more["steps"] > sleeping["steps"] == 6
    for name, one in card["controls"].items():
        own = load_card(tmp_path / f"runs/tiny/{name}/seed-0/card.json")
        assert isinstance(own, RunCard)
        assert one["accuracies"] == [own.score["by_depth"]["4"]["accuracy"]]
        assert own.recipe["name"] == f"tiny, {one['label']}"
    assert program.main(some) == 0  # nothing is trained anew
    again = json.loads((tmp_path / "out/tiny.json").read_text())
    assert again["wall_time_s_of_runs"] == card["wall_time_s_of_runs"]
    assert again["controls"] == card["controls"]


@pytest.mark.slow
def test_all_controls_and_several_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "ROUNDS", 4)
    assert program.main([*arguments(tmp_path, "--out", str(tmp_path / "out")), "--seeds", "3,1"]) == 0
    card = json.loads((tmp_path / "out/tiny.json").read_text())
    assert list(card["controls"]) == list(cells.CONTROLS)
    assert card["seeds"] == [3, 1]
    assert all(len(one["accuracies"]) == 2 for one in card["controls"].values())
    drawing = cards.figure(card)
    assert_texts_apart(drawing)
    assert len(drawing.legends[0].get_texts()) == len(cells.CONTROLS) + 1


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--controls", "n1,nap"], "there is no control 'nap'"),
        (["--seeds", "0,one"], "--seeds must be numbers"),
        (["--seeds", "-1"], "train.seed"),
        (["--tasks", "depo/nan"], "there is no recipe depo/nan"),
        (["--set", 'model.layers=["attn"]'], "cannot have controls"),
        (["--set", 'sleep.eviction="sliding"'], "cannot have controls"),
        (["--set", 'model.injection="add"'], "cannot have controls"),
        (["--set", "train.stages=[{share=1, parameters='all', eviction='hard'}]"], "cannot have controls"),
        (["--tasks", "gsm_infinite/nano", "--set", "task.num_questions=1"], "written token by token"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], sentence: str
) -> None:
    assert program.main([*arguments(tmp_path), *more]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_a_folder_with_another_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(arguments(tmp_path, "--controls", "n1")) == 0
    capsys.readouterr()
    assert program.main(arguments(tmp_path, "--controls", "n1", "--set", "train.batch_size=9")) == 2
    assert "other settings" in capsys.readouterr().err
