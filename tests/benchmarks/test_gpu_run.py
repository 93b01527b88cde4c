"""A session on a GPU, end to end on a CPU with the toy plan: cut off, carried away, gone on with, and killed."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from reverie.results.card import RunCard, load_card
from reverie.results.checkpoint import FILE_NAME
from reverie.train.run import train

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"
sys.path.insert(0, str(FOLDER))
child, gpu_run, record, session, training = (
    importlib.import_module(name) for name in ("child", "run", "record", "session", "training")
)
TOY = FOLDER / "plans" / "toy.toml"
TRAINING_S = 0.15  # of the first call: less than the first run takes
SMALLER = {"train.steps=100": "train.steps=40", "sleep.window_size=6": "sleep.window_size=7", "steps = 20": "steps = 8"}


def call(*arguments: object, plan: Path = TOY) -> int:
    return gpu_run.main([str(plan), "--device", "cpu", *map(str, arguments)])


@pytest.fixture
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy plan with fewer windows and steps."""
    path, text = tmp_path_factory.mktemp("plan") / "toy.toml", TOY.read_text()
    for old, new in SMALLER.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


@pytest.fixture
def first(smaller: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A call whose time is up in the first run. Leaves state and out."""
    folder = tmp_path_factory.mktemp("first")
    whole = session.Session._train

    def hurried(self: Any, *arguments: Any) -> Any:
        self.budget.seconds = (self.budget.elapsed + TRAINING_S) / (1 - record.RESERVE_SHARE)
        return whole(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(session.Session, "_train", hurried)
        assert call("--state", folder / "state", "--out", folder / "out", "--seconds", 300, plan=smaller) == 0
    return folder


@pytest.fixture
def second(smaller: Path, first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A call that goes on from the parts alone, and whose process is killed in the run depth/t3."""
    folder = tmp_path_factory.mktemp("second")
    whole = session.RunDisplay.update
    sessions: list[Any] = []
    begin = session.Session.__init__

    def known(self: Any, *arguments: Any) -> None:
        begin(self, *arguments)
        sessions.append(self)

    def deadly(self: Any, name: str, event: Any) -> None:
        whole(self, name, event)
        if name == "depth/t3-seed-0":
            os.kill(sessions[0].child.pid, signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(session.Session, "__init__", known)
        patch.setattr(session.RunDisplay, "update", deadly)
        arguments = ("--seconds", 300, "--resume-from", first / "out")
        assert call("--state", folder / "state", "--out", folder / "out", *arguments, plan=smaller) == 0
    return folder


def read_record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "session.json").read_text())


def check_the_first_call_checks_measures_and_saves(first: Path) -> None:
    found = read_record(first)
    assert found["kernels"]["chunked"]["passed"]
    assert not found["kernels"]["fla"]["passed"]
    assert found["ceilings"].keys() == {"bfloat16_tflops", "float32_tflops", "copy_tb_per_s", "launch_us"}
    assert all(value > 0 for value in found["ceilings"].values())
    (ways,) = {ways["group"]: ways for ways in found["ways"].values()}.values()
    assert [row["name"] for row in ways["rows"] if row["passed"]] == ["chunked, eager"]
    assert ways["rows"][0]["gradient_error"] < 1e-5
    assert {"n1", "n2"} == found["groups"]["passes"]["speeds"].keys()
    assert found["groups"]["passes"]["steps"] == 40
    cut = found["runs"]["passes/n1-seed-0"]
    assert (cut["state"], cut["steps"]) == ("unfinished", 40)
    assert cut["step"] < 40
    assert list(found["runs"]) == ["passes/n1-seed-0"]


def check_what_is_carried_away_is_small_and_flat(first: Path) -> None:
    out = first / "out"
    assert {path.name for path in out.iterdir()} == {
        "session.json", "summary.txt", "state.tar.000", "state.tar.pieces.json",
    }  # fmt: skip
    assert str(first) not in (out / "session.json").read_text() + (out / "summary.txt").read_text()
    speed = json.loads((first / "state" / "results" / "speed.json").read_text())
    assert speed["groups"][0]["profile"][-1]["kind"] == "idle"
    rows = [*speed["groups"][0]["ways"], *speed["groups"][0]["variants"]]
    assert all(row["floor_share"] > 0 for row in rows)
    assert (first / "state" / "results" / "speed.png").read_bytes().startswith(b"\x89PNG")


def timeless(card: RunCard) -> dict[str, Any]:
    content = card.model_dump(mode="json", exclude={"wall_time_s", "date", "commit"})
    return content | {"curve": [{**point, "wall_time_s": 0} for point in content["curve"]]}


def check_a_broken_run_is_the_run_without_the_break(second: Path, tmp_path: Path) -> None:
    """Other settings of threads than the child's would sum in another order."""
    card = load_card(second / "state" / "results" / "cards" / "passes-n1-seed-0.json")
    assert isinstance(card, RunCard)
    recipe = training.Recipe.model_validate(card.recipe)
    train(recipe, tmp_path / "whole")
    whole = load_card(tmp_path / "whole" / "card.json")
    assert isinstance(whole, RunCard)
    assert timeless(card) == timeless(whole)
    assert card.steps == 40


def check_all_runs_of_a_group_see_the_same_tokens(second: Path) -> None:
    comparison = json.loads((second / "state" / "results" / "toy-passes.json").read_text())
    assert [result["num_sleep_passes"] for result in comparison["results"]] == [1, 2]
    assert len({run["tokens"] for run in comparison["runs"]}) == 1
    results = second / "state" / "results"
    for name in ("toy-passes.png", "toy-passes-curves.png", "toy-depth-curves.png"):
        assert (results / name).read_bytes().startswith(b"\x89PNG")
    lines = (results / "curves" / "passes-n2-seed-0.csv").read_text().splitlines()
    assert lines[0].startswith("step,tokens,wall_time_s,train_loss,loss,exact_accuracy")
    assert [line.split(",")[0] for line in lines[1:]] == ["10", "20", "30", "40"]


def check_a_killed_process_costs_its_run_alone(second: Path) -> None:
    runs = read_record(second)["runs"]
    assert {name: run["state"] for name, run in runs.items()} == {
        "passes/n1-seed-0": "finished", "passes/n2-seed-0": "finished", "depth/t1-seed-0": "finished",
        "depth/t3-seed-0": "failed", "depth/t3-warm-seed-0": "finished",
    }  # fmt: skip
    assert "its process died (signal SIGKILL)" in runs["depth/t3-seed-0"]["notes"][0]
    assert "its process died" in (second / "out" / "summary.txt").read_text()


def check_what_was_measured_is_not_measured_again(first: Path, second: Path) -> None:
    before, after = read_record(first), read_record(second)
    assert before["ceilings"] == after["ceilings"]
    assert before["ways"] == after["ways"]
    assert len(after["calls"]) == 2


def check_a_warm_start_begins_with_the_weights_of_the_other_run(second: Path) -> None:
    card = load_card(second / "state" / "runs" / "depth" / "t3-warm-seed-0" / "card.json")
    assert isinstance(card, RunCard)
    assert card.recipe["train"]["init_from"] == "runs/depth/t1-seed-0"


def check_finished_runs_come_back_as_weights(second: Path, tmp_path: Path) -> None:
    """Without what only training needs; they are evaluated as any run is."""
    export = importlib.import_module("export")
    assert export.restore(second / "out", tmp_path / "state")
    name = "runs/passes/n2-seed-0"
    carried, trained = (folder / name / FILE_NAME for folder in (tmp_path / "state", second / "state"))
    assert carried.stat().st_size < trained.stat().st_size
    result = importlib.import_module("reverie.results.run")
    again = result.evaluate_run(tmp_path / "state" / name)
    card = load_card(tmp_path / "state" / name / "card.json")
    assert isinstance(card, RunCard)
    assert again.score["exact_accuracy"] == pytest.approx(card.score["exact_accuracy"])


def test_two_calls(first: Path, second: Path, tmp_path: Path) -> None:
    """One test: several, shared out among processes, would each need both calls."""
    check_the_first_call_checks_measures_and_saves(first)
    check_what_is_carried_away_is_small_and_flat(first)
    check_a_broken_run_is_the_run_without_the_break(second, tmp_path)
    check_all_runs_of_a_group_see_the_same_tokens(second)
    check_a_killed_process_costs_its_run_alone(second)
    check_what_was_measured_is_not_measured_again(first, second)
    check_a_warm_start_begins_with_the_weights_of_the_other_run(second)
    check_finished_runs_come_back_as_weights(second, tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("steps = 20", "steps = 20\nsecond = 3"), "groups[1].second is not a known key; did you mean seconds?"),
        (("steps = 20\n", ""), "groups[1].steps is missing"),
        (("rule110/nano", "rule110/nan"), "group passes, variant n1: there is no recipe rule110/nan; did you mean"),
    ],
)
def test_a_wrong_plan_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], sentence: str
) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(TOY.read_text().replace(*change))
    assert gpu_run.main([str(path), "--state", str(tmp_path / "state"), "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--max-files", 3), "nothing useful fits into 3 files"),
        (("--seconds", 0), "--seconds must be above 0, got 0"),
        (("--resume-from", "nowhere"), "nowhere must hold one list of pieces"),
        (("--wheels", "nowhere"), "--wheels: there is no wheel in nowhere"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], sentence: str
) -> None:
    assert call("--state", tmp_path / "state", "--out", tmp_path / "out", *arguments) == 2
    assert sentence in capsys.readouterr().err


def test_the_seconds_count_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that comes before the session: wheels to unpack, libraries to import."""
    budgets: list[Any] = []

    def slow(wheels: Path, site: Path) -> Path:
        time.sleep(0.3)
        return site

    class Seen:
        def __init__(self, loaded: Any, state: Path, device: str, budget: Any, paths: list[str]) -> None:
            budgets.append(budget)

        def run(self, *arguments: Any, **options: Any) -> None:
            pass

    monkeypatch.setattr(gpu_run, "install", slow)
    monkeypatch.setattr(session, "Session", Seen)
    assert call("--state", tmp_path / "state", "--out", tmp_path / "out", "--wheels", tmp_path) == 0
    assert 0.3 <= budgets[0].elapsed < 60
    assert record.Budget(100, time.monotonic() - 50).left == pytest.approx(100 - 50 - 12, abs=1)


def test_another_cpu_is_another_machine_only_without_a_gpu(tmp_path: Path) -> None:
    for gpu, kept in (("G", True), (None, False)):
        known = record.Record(tmp_path / f"{gpu}.json", "p")
        known.note_machine({"device": "d", "gpu": gpu, "cpu": "one"})
        known["ways"] = {"some": "way"}
        known.note_machine({"device": "d", "gpu": gpu, "cpu": "other"})
        assert ("ways" in known) == kept


def test_wheels_come_first_on_the_path(tmp_path: Path) -> None:
    """A wheel is a zip file: this one holds a module and what pip wants to know of it."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    about = "wheeled-1.0.dist-info"
    with zipfile.ZipFile(wheels / "wheeled-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("wheeled.py", "here = True\n")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: wheeled\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: a test\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    site = gpu_run.install(wheels, tmp_path / "site")
    assert (site / "wheeled.py").is_file()
    assert gpu_run.install(wheels, tmp_path / "site") == site


def test_the_command_needs_nothing_but_the_checkout(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "run.py"), "--help"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert "--resume-from" in done.stdout


def test_a_job_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    """And its process with it, were it only starting."""
    process = child.Child("cpu", tmp_path, {**os.environ, "PYTHONPATH": str(FOLDER.parents[1])})
    with pytest.raises(child.JobFailed) as failure:
        process.do("describe", limit=0.2)
    assert failure.value.kind == "overdue"
    assert process.pid is None
