"""Which way is chosen: nothing wrong is timed, and what fails is left for something simpler or smaller."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_session import LIMITS, SMALL, Fail, child, small_session

from reverie.ops import dispatch, reference
from reverie.recipe import Recipe

check, choice, recipe_module, ways = (
    importlib.import_module(name) for name in ("model_check", "choice", "reverie.recipe", "ways")
)
JobFailed = child.JobFailed


def forgetful(q: Any, k: Any, v: Any, g: Any, beta: Any, **options: Any) -> Any:
    """The rule without decay: wrong, and faster."""
    return reference.recurrence(q, k, v, None if g is None else 0.0 * g, beta, **options)


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reports.save_figure", lambda drawing, path: None)


@pytest.fixture
def with_wrong_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "BACKENDS", (*dispatch.BACKENDS, "wrong"))
    monkeypatch.setitem(dispatch._RECURRENCES, "wrong", forgetful)


@pytest.mark.usefixtures("with_wrong_backend")
def test_a_wrong_backend_gets_no_time(tmp_path: Path) -> None:
    made = small_session(tmp_path)
    made.run(tmp_path / "out", LIMITS, check_only=False)
    assert not made.record["kernels"]["wrong"]["passed"]
    assert "is off by" in made.record["kernels"]["wrong"]["why"]
    speed = json.loads((tmp_path / "state" / "results" / "speed.json").read_text())
    assert [row["name"] for group in speed["groups"] for row in group["ways"]] == ["chunked, eager"]
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert "kernels wrong: left out: " in summary
    assert made.record["runs"]["only/n1-seed-0"]["state"] == "finished"


def test_a_mistake_that_only_the_model_shows_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, device = tmp_path / "truth.safetensors", torch.device("cpu")
    small = small_session(tmp_path)
    recipe = small.loaded.variants(small.loaded.plan.groups[0])["n1"]
    check.truth(recipe, device, path)
    assert check.check_way(recipe, device, path)["passed"]
    monkeypatch.setitem(dispatch._RECURRENCES, "chunked", forgetful)
    wrong = check.check_way(recipe, device, path)
    assert not wrong["passed"]
    assert "is off by" in wrong["why"]


def test_a_graph_must_take_the_steps_that_are_taken_without(tmp_path: Path) -> None:
    """Here one that is none, and one that takes other steps."""
    small, device = small_session(tmp_path), torch.device("cpu")
    recipe = small.loaded.variants(small.loaded.plan.groups[0])["n1"]
    other = load_other(recipe)
    folders = [tmp_path / name for name in "abc"]
    losses = [check.first_steps(r, device, out, 5) for r, out in zip((recipe, recipe, other), folders, strict=True)]
    assert list(losses[0]) == [1, 2, 3, 4, 5]
    assert check.same_steps(recipe, folders[0], folders[1], losses[:2])["passed"]
    assert not check.same_steps(recipe, folders[2], folders[1], losses[2:0:-1])["passed"]


def load_other(recipe: Recipe) -> Recipe:
    return recipe_module.changed(recipe, optim={"weight_decay": 0.5}, train={"batch_size": 3})


STEP_S = {
    "triton, compiled": 0.010,
    "triton, compiled CUDA graph": 0.004,
    "chunked, compiled": 0.020,
    "chunked, compiled CUDA graph": 0.001,
    "chunked, eager": 0.030,
    "chunked, eager CUDA graph": 0.015,
}


class Canned:
    """As `Child` on a GPU that there is not: answers that a test has thought up, by job and way. `fail` may raise."""

    pid = None

    def __init__(self, fail: Fail = lambda job, arguments: None) -> None:
        self.fail = fail
        self.timed: list[str] = []
        self.ran: list[str] = []
        self.done: list[str] = []

    def do(self, job: str, *, limit: float, **arguments: Any) -> dict[str, Any]:
        name = ways.way_of(Recipe.model_validate(arguments["recipe"])).name if "recipe" in arguments else ""
        self.done.append(job)
        self.fail(job, arguments)
        if job == "describe":
            return {"machine": {"device": "cuda", "gpu": "G", "python": "3", "versions": {}}}
        if job == "ceilings":
            return {"bfloat16_tflops": 790.0, "copy_tb_per_s": 4.3, "launch_us": 5.0}
        if job == "check_kernels":
            return {
                "backend": arguments["backend"],
                "passed": arguments["backend"] != "fla",
                "why": "wrong",
                "rows": [{"error": 0, "case": "", "worst": ""}],
            }
        if job == "check_way":  # one way is wrong, and one takes the process with it
            if name.startswith("triton, eager"):
                raise JobFailed("died", "its process died (signal SIGSEGV)")
            return {"passed": True, "why": None}
        if job == "check_graph":
            return {
                "passed": not name.startswith("chunked, compiled CUDA graph"),
                "why": "8 steps: losses are off by 1.0e-01",
            }
        if job == "time_way":
            self.timed.append(name)
            step = STEP_S[name.partition(", checkpoint")[0]]
            times = {
                "seconds_per_step": step,
                "mean_seconds_per_step": step,
                "startup_s": 20,
                "tokens_per_s": 5e4 / step,
            }
            return times | {"peak_gib": 9.0, "profile": [], "kernels": []}
        if job == "run":
            self.ran.append(name)
            return {"steps": 4, "wall_time_s": 1.0, "peak_gib": 9.0}
        return {"seconds": 2.0}

    def close(self) -> None:
        pass


def canned_session(folder: Path, fail: Fail = lambda job, arguments: None, text: str = SMALL) -> Any:
    made = small_session(folder, text=text)
    made.child = Canned(fail)
    return made


def kept(arguments: dict[str, Any]) -> str:
    return arguments["recipe"]["train"]["activation_checkpoint"]


def test_check_only_takes_no_time(tmp_path: Path) -> None:
    """And what it has found right gets its time in the next call."""
    made = canned_session(tmp_path)
    made.run(tmp_path / "out", LIMITS, check_only=True)
    (found,) = made.record["ways"].values()
    assert {row["name"] for row in found["rows"] if row["passed"]} == {
        "triton, compiled",
        "triton, compiled CUDA graph",
    }
    assert not {"time_way", "time_evaluation", "run"} & set(made.child.done)
    assert "seconds_per_step" not in json.dumps(made.record)
    again = canned_session(tmp_path)
    again.run(tmp_path / "out", LIMITS, check_only=False)
    assert again.record["runs"]["only/n1-seed-0"]["way"] == "triton, compiled CUDA graph"


def test_a_run_that_is_out_of_memory_keeps_less(tmp_path: Path) -> None:
    def fail(job: str, arguments: dict[str, Any]) -> None:
        if job == "run" and kept(arguments) != "window":
            raise JobFailed("memory", "OutOfMemoryError: CUDA out of memory")

    made = canned_session(tmp_path, fail)
    made.run(tmp_path / "out", LIMITS, check_only=False)
    run = made.record["runs"]["only/n1-seed-0"]
    assert (run["state"], run["way"]) == ("finished", "triton, compiled CUDA graph, checkpoint a window")
    assert len(run["notes"]) == 2


def test_steps_that_do_not_fit_the_memory_are_timed_with_less_kept(tmp_path: Path) -> None:
    def fail(job: str, arguments: dict[str, Any]) -> None:
        if job in ("time_way", "check_way") and kept(arguments) == "none":
            raise JobFailed("memory", "OutOfMemoryError: CUDA out of memory")

    made = canned_session(tmp_path, fail)
    made.run(tmp_path / "out", LIMITS, check_only=False)
    assert made.record["runs"]["only/n1-seed-0"]["way"] == "triton, compiled CUDA graph, checkpoint a pass"
    (found,) = made.record["ways"].values()
    assert [row["name"] for row in found["rows"][2:4]] == [
        "triton, compiled, checkpoint a pass", "triton, compiled CUDA graph, checkpoint a pass",
    ]  # fmt: skip


def test_a_diverged_run_is_not_tried_again(tmp_path: Path) -> None:
    def fail(job: str, arguments: dict[str, Any]) -> None:
        if job == "run":
            raise JobFailed("refused", "training diverged at step 3 (the loss is nan)")

    for calls in (1, 2):
        made = canned_session(tmp_path, fail)
        made.run(tmp_path / "out", LIMITS, check_only=False)
        run = made.record["runs"]["only/n1-seed-0"]
        assert run["state"] == "failed"
        assert ["training diverged" in note for note in run["notes"]] == [True]
        assert made.child.done.count("run") == (calls == 1)


def test_a_broken_stage_loses_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job: str, arguments: dict[str, Any]) -> None:
        if job == "ceilings":
            raise JobFailed("died", "its process died")

    monkeypatch.setattr("reports._compare", lambda *arguments: 1 / 0)
    made = canned_session(tmp_path, fail)
    made.run(tmp_path / "out", LIMITS, check_only=False)
    assert "ceilings" not in made.record
    assert made.record["runs"]["only/n1-seed-0"]["state"] == "finished"
    assert (tmp_path / "out" / "state.tar.000").is_file()
    assert "ZeroDivisionError" in (tmp_path / "state" / "log.txt").read_text()


def test_fitted_steps_fill_the_time_and_are_the_same_for_all() -> None:
    plan = importlib.import_module("plan")
    group = plan.Group(name="a", recipe="r", variants=({"name": "x"}, {"name": "y"}), steps="fit", seconds=1000,
                       evaluations=9, seeds=(0, 1))  # fmt: skip
    costs = [choice.Cost(0.1, 10, 1), choice.Cost(0.3, 20, 3)]
    steps = choice.fitted_steps(group, costs, 10**6)
    spent = 2 * sum(cost.compiling + 10 * cost.evaluation + steps * cost.step for cost in costs)
    assert 0.93 * 1000 < spent <= 0.95 * 1000
    assert choice.fitted_steps(group, costs, 50) == 50
    assert choice.fitted_steps(group, [choice.Cost(0.1, 10**6, 1)], 50) == 1


def test_the_fastest_right_way_runs_and_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "ONE_CHUNK", 2)  # so that "chunked" is tried as well

    def fail(job: str, arguments: dict[str, Any]) -> None:
        if job == "run" and arguments["recipe"]["train"]["cuda_graph"]:
            raise JobFailed("failed", "RuntimeError: capture went wrong")

    made = canned_session(tmp_path, fail)
    made.run(tmp_path / "out", LIMITS, check_only=False)
    (found,) = made.record["ways"].values()
    assert ways.Way(**found["chosen"]).name == "triton, compiled CUDA graph"
    timed = {row["name"]: row.get("seconds_per_step") for row in found["rows"]}
    assert timed == {
        "triton, compiled": 0.010,
        "triton, compiled CUDA graph": 0.004,
        "chunked, compiled": 0.020,
        "chunked, compiled CUDA graph": None,  # wrong: it never gets a time
        "triton, eager": None,
        "chunked, eager": 0.030,
        "triton, eager CUDA graph": None,
        "chunked, eager CUDA graph": 0.015,
    }
    assert "chunked, compiled CUDA graph" not in made.child.timed
    assert not any(name.startswith("fla") for name in timed)
    assert made.child.ran == ["triton, compiled"]
    run = made.record["runs"]["only/n1-seed-0"]
    assert (run["state"], run["way"]) == ("finished", "triton, compiled")
    assert run["notes"] == [
        "triton, compiled CUDA graph failed (RuntimeError: capture went wrong), so triton, compiled"
    ]


def test_steps_wait_until_every_variant_has_been_timed(tmp_path: Path) -> None:
    """In the first call the time is up before the second variant; the first one is not timed again."""
    text = SMALL.replace("steps = 4", 'steps = "fit"\nseconds = 60').replace(
        '{ name = "n1" }', '{ name = "n1" }, { name = "n2", set = ["sleep.num_sleep_passes=2"] }'
    )

    def hurried(job: str, arguments: dict[str, Any]) -> None:
        if job == "time_way" and arguments["recipe"]["sleep"]["num_sleep_passes"] == 2:
            first.budget.seconds = first.budget.elapsed
            raise JobFailed("overdue", "it took longer than there was time for")
        if job == "time_evaluation":
            first.budget.seconds = first.budget.elapsed + 50

    first = canned_session(tmp_path, hurried, text)
    first.run(tmp_path / "out", LIMITS, check_only=False)
    assert "steps" not in first.record["groups"]["only"]
    assert first.record["runs"] == {}
    second = canned_session(tmp_path, text=text)
    second.run(tmp_path / "out", LIMITS, check_only=False)
    assert second.record["groups"]["only"]["costs"].keys() == {"n1", "n2"}
    assert len(second.child.timed) == 1
    assert len(second.record["runs"]) == 2


def test_fitted_steps_are_chosen_once(tmp_path: Path) -> None:
    text = SMALL.replace("steps = 4", 'steps = "fit"\nseconds = 30\nevaluations = 3')
    for call in (1, 2):
        made = canned_session(tmp_path, text=text)
        made.run(tmp_path / "out", LIMITS, check_only=False)
        assert bool(made.child.timed) == (call == 1)
        found = made.record["groups"]["only"]
        assert found["costs"] == {"n1": {"step": 0.004, "compiling": 20, "evaluation": 2.0}}
        assert found["steps"] == int((0.95 * 30 - 20 - 4 * 2) / 0.004)


def test_a_backend_that_had_no_time_is_tried_in_the_next_call(tmp_path: Path) -> None:
    """And then no more: the way is final. Steps are not fitted to one that may not be."""
    text = SMALL.replace("steps = 4", 'steps = "fit"\nseconds = 60')

    def slow(job: str, arguments: dict[str, Any]) -> None:
        if job == "check_kernels" and arguments["backend"] == "triton":
            raise JobFailed("overdue", "it took longer than there was time for")

    chosen = []
    for fail in (slow, lambda job, arguments: None, slow):
        made = canned_session(tmp_path, fail, text)
        made.run(tmp_path / "out", LIMITS, check_only=False)
        assert ("steps" in made.record["groups"].get("only", {})) == bool(chosen)
        (found,) = made.record["ways"].values()
        chosen.append(ways.Way(**found["chosen"]).name)
    assert chosen == ["chunked, eager CUDA graph", *["triton, compiled CUDA graph"] * 2]
    assert made.child.timed == []


def test_a_run_is_asked_to_stop_so_early_that_it_ends_in_time(tmp_path: Path) -> None:
    """A step of 1 s that is measured in 30, another one, and a checkpoint of 2 GB."""
    asked: list[tuple[float, float]] = []

    class Slow(Canned):
        def do(self, job: str, *, limit: float, **arguments: Any) -> dict[str, Any]:
            if job == "run":
                asked.append((limit, arguments["until"] - time.time()))
            found = super().do(job, limit=limit, **arguments)
            if job == "time_way":
                found |= {"mean_seconds_per_step": 1.0, "weights_bytes": 2e9 / 3}
            return found | ({"seconds": 30.0} if job == "time_evaluation" else {})

    made = small_session(tmp_path, text=SMALL.replace("steps = 4", 'steps = "fit"\nseconds = 100'))
    made.child = Slow()
    made.run(tmp_path / "out", LIMITS, check_only=False)
    [(limit, until)] = asked
    assert until == pytest.approx(300 - 36 - 42, abs=10)
    assert limit - until == pytest.approx(2 * 42 + 15, abs=1)
