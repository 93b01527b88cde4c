"""A comparison: which runs it has, one process each, what is trained already stays, and a failure names its run."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipe import tiny_recipe

from reverie.errors import UserError
from reverie.recipe import Recipe
from reverie.results.card import ComparisonCard, load_card
from reverie.results.checkpoint import FILE_NAME, Progress, load_checkpoint
from reverie.results.run import CARD_NAME
from reverie.train import compare as module
from reverie.train import worker
from reverie.train.compare import FIGURE_NAME, compare
from reverie.train.plan import Run, plan_runs
from reverie.train.run import train
from reverie.train.worker import Event

pytestmark = pytest.mark.slow


# -- the plan


def test_the_plan_is_every_model_with_every_seed_the_longest_first(tmp_path: Path):
    runs = plan_runs(tiny_recipe(), [1, 4, 2], [5, 3], tmp_path, transformer=True)
    assert [run.name for run in runs] == [
        "sleep-4-seed-5", "sleep-4-seed-3", "sleep-2-seed-5", "sleep-2-seed-3",
        "hybrid-seed-5", "transformer-seed-5", "hybrid-seed-3", "transformer-seed-3",
    ]  # fmt: skip
    assert [run.out for run in runs] == [tmp_path / run.name for run in runs]
    assert list(tmp_path.iterdir()) == []


def test_runs_differ_from_the_recipe_in_nothing_else(tmp_path: Path):
    recipe = tiny_recipe(train={"metric": "exact"}, sleep={"num_sleep_passes": 7})
    for run in plan_runs(recipe, [1, 4], [5], tmp_path, transformer=True):
        transformer = run.name.startswith("transformer")
        assert run.recipe.train == recipe.train.model_copy(update={"seed": 5})
        assert (run.recipe.task, run.recipe.optim, run.recipe.name) == (recipe.task, recipe.optim, recipe.name)
        passes = 4 if run.name.startswith("sleep-4") else 1
        assert run.recipe.sleep == recipe.sleep.model_copy(update={"num_sleep_passes": passes})
        layers = ("attn", "attn") if transformer else recipe.hybrid.layers
        assert run.recipe.model == recipe.model.model_copy(update={"layers": layers})
        assert Recipe.model_validate(json.loads(run.recipe.model_dump_json())) == run.recipe


FAST_HARD, FAST_SLIDING, ALL_HARD, ALL_SLIDING = (
    {"share": share, "parameters": parameters, "eviction": eviction}
    for share, (parameters, eviction) in enumerate(product(("fast_weights", "all"), ("hard", "sliding")), start=1)
)


@pytest.mark.parametrize(
    ("stages", "of_the_transformer"),
    [
        ([FAST_HARD, ALL_SLIDING], [ALL_SLIDING]),
        ([FAST_HARD, ALL_HARD, FAST_SLIDING, ALL_SLIDING], [ALL_HARD, ALL_SLIDING]),
        ([ALL_HARD, FAST_SLIDING], [ALL_HARD, {**FAST_SLIDING, "parameters": "all"}]),
        ([FAST_HARD], [{**FAST_HARD, "parameters": "all"}]),
    ],
)
def test_the_transformer_has_no_stage_for_fast_weights(
    tmp_path: Path, stages: list[dict[str, Any]], of_the_transformer: list[dict[str, Any]]
):
    recipe = tiny_recipe(sleep={"eviction": stages[-1]["eviction"]}, train={"stages": stages, "steps": 10})
    hybrid, transformer = plan_runs(recipe, [1], [0], tmp_path, transformer=True)
    assert hybrid.recipe.train == recipe.train
    assert transformer.recipe.model_dump()["train"] == {
        **recipe.model_dump()["train"], "stages": tuple(of_the_transformer)
    }  # fmt: skip
    assert train(transformer.recipe, transformer.out).model == "transformer"


def test_the_transformer_can_be_left_out_and_numbers_may_repeat(tmp_path: Path):
    """Two runs in one folder would overwrite each other."""
    runs = plan_runs(tiny_recipe(), [2, 1, 2], [0, 0], tmp_path, transformer=False)
    assert [run.name for run in runs] == ["sleep-2-seed-0", "hybrid-seed-0"]


@pytest.mark.parametrize(
    ("passes", "seeds", "sentence"),
    [
        ([1, 0], [0], "sleep.num_sleep_passes must be at least 1, got 0"),
        ([1], [0, -1], "train.seed must be at least 0, got -1"),
        ([1], [2**32], "train.seed must be below 4294967296, got 4294967296"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, passes: list[int], seeds: list[int], sentence: str):
    with pytest.raises(UserError) as caught:
        plan_runs(tiny_recipe(), passes, seeds, tmp_path, transformer=True)
    assert str(caught.value) == sentence


def test_a_recipe_without_fast_weights_has_nothing_to_compare(tmp_path: Path):
    with pytest.raises(UserError, match="tiny has attention layers alone"):
        plan_runs(tiny_recipe(model={"layers": ["attn", "attn"]}), [1, 2], [0], tmp_path, transformer=True)


# -- real processes


class Children:
    """Remembers the processes that were started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[BaseProcess] = []
        start = module.child

        @contextlib.contextmanager
        def noted(*arguments: Any) -> Iterator[Any]:
            with start(*arguments) as (process, events):
                self.started.append(process)
                yield process, events

        monkeypatch.setattr(module, "child", noted)
        for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):  # these are set, and must not stay
            monkeypatch.setenv(name, os.environ.get(name, ""))


class Killed(Exception):
    pass


def kill_at_5(progress: Progress, loss: float) -> None:
    if progress.step == 5:
        raise Killed


def test_a_comparison_from_start_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Three models; of one the run is there, of another one half of it."""
    recipe, out = tiny_recipe(), tmp_path / "out"
    half, done, fresh = runs = plan_runs(recipe, [2, 1], [0], out, transformer=True)
    train(done.recipe, done.out)
    with pytest.raises(Killed):
        train(half.recipe, half.out, report=kill_at_5)
    finished_before = (done.out / FILE_NAME).stat().st_mtime_ns
    children, told = Children(monkeypatch), []
    card = compare("tiny", "question", runs, out, jobs=2, report=lambda run, event: told.append((run.name, event)))

    assert len(children.started) == 2
    assert all(child.exitcode == 0 for child in children.started)
    assert {name for name, _ in told} == {half.name, fresh.name}
    assert next(event.step for name, event in told if name == half.name) == 5  # behind the checkpoint of step 4
    assert [event.step for name, event in told if name == fresh.name][-1] == 6
    assert (done.out / FILE_NAME).stat().st_mtime_ns == finished_before

    assert card.name == "tiny"
    assert [(result.model, result.num_sleep_passes) for result in card.results] == [
        ("transformer", 1), ("hybrid", 1), ("sleep", 2),
    ]  # fmt: skip
    assert [run.hardware.threads for run in card.runs if run.model != "hybrid"] == [1, 1]
    saved = load_card(out / CARD_NAME)
    assert isinstance(saved, ComparisonCard)
    assert [result.accuracy for result in saved.results] == pytest.approx([r.accuracy for r in card.results], rel=1e-4)
    assert (out / FIGURE_NAME).read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in out.iterdir()) == sorted([CARD_NAME, FIGURE_NAME, *(run.name for run in runs)])

    # What a process of its own trained is what this process trains.
    train(half.recipe, tmp_path / "here")
    here, there = (load_checkpoint(folder / FILE_NAME).tensors for folder in (tmp_path / "here", half.out))
    assert all(torch.equal(here[name], there[name]) for name in here)

    # Once more: all runs are used as they are.
    (out / FIGURE_NAME).unlink()
    again = compare("tiny", "exact", runs, out, jobs=2, report=lambda run, event: told.append((run.name, None)))
    assert len(children.started) == 2
    assert told[-1][1] is not None
    assert again.metric == "exact"
    assert (out / FIGURE_NAME).exists()


def test_a_run_that_diverges_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bad = Run("bad", tiny_recipe(optim={"matrices": {"lr": 1e38}, "rest": {"lr": 1e38}}), tmp_path / "bad")
    children = Children(monkeypatch)
    with pytest.raises(UserError, match=r"^run bad failed: training diverged at step \d"):
        compare("tiny", "question", [bad], tmp_path, jobs=1)
    assert len(children.started) == 1
    assert not (tmp_path / CARD_NAME).exists()


# -- processes that misbehave, without the time that importing torch takes


def children_that(monkeypatch: pytest.MonkeyPatch, do: Callable[[str, Callable[..., None]], object]) -> Children:
    """Instead of training, each child, which is a fork, calls `do` with the name of its run and `tell(step)`."""

    def fake(recipe: Recipe, out: Path, *, report: Callable[[Progress, float], None], **_: object) -> None:
        do(out.name, lambda step=1: report(Progress(step=step), 1.0))

    monkeypatch.setattr(worker, "train", fake)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # may wait for threads that no fork has
    monkeypatch.setattr(worker, "CONTEXT", multiprocessing.get_context("fork"))
    return Children(monkeypatch)


def some_runs(out: Path, *names: str) -> list[Run]:
    return [Run(name, tiny_recipe(), out / name) for name in names]


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("do", "sentence"),
    [
        (lambda name, tell: fail(UserError("no luck")), "run a failed: no luck"),
        (lambda name, tell: fail(NameError("x")), "run a failed: its process ended (NameError: x)"),
        (lambda name, tell: os.kill(os.getpid(), 9), "run a failed: its process ended (exit code -9)"),
        (lambda name, tell: sys.exit(3), "run a failed: its process ended (exit code 3)"),
    ],
)
def test_a_failure_is_one_sentence_that_names_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, do: Any, sentence: str
):
    children_that(monkeypatch, do)
    with pytest.raises(UserError) as caught:
        compare("tiny", "question", some_runs(tmp_path, "a"), tmp_path, jobs=1)
    assert str(caught.value) == sentence


def test_a_failure_stops_the_others_and_no_more_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    children = children_that(monkeypatch, lambda name, tell: fail(UserError("!")) if name == "b" else time.sleep(60))
    with pytest.raises(UserError, match="run b failed: !"):
        compare("tiny", "question", some_runs(tmp_path, *"abc"), tmp_path, jobs=2)
    assert [child.exitcode is None for child in children.started] == [False, False]


def test_no_more_runs_at_a_time_than_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def do(name: str, tell: Callable[..., None]) -> None:
        tell(6)  # the last
        if name == "e":
            raise UserError("the end")

    children = children_that(monkeypatch, do)
    started: list[int] = []
    with pytest.raises(UserError, match="run e failed: the end"):
        compare(
            "tiny", "question", some_runs(tmp_path, *"abcde"), tmp_path, jobs=2,
            report=lambda run, event: started.append(len(children.started)),
        )  # fmt: skip
    assert started[0] == 2  # none has ended yet
    assert len(children.started) == 5


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError])
def test_no_child_outlives_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
):
    children = children_that(monkeypatch, lambda name, tell: (tell(6), time.sleep(60)))

    def report(run: Run, event: Event) -> None:
        raise interruption

    with pytest.raises(interruption):
        compare("tiny", "question", some_runs(tmp_path, "a", "b"), tmp_path, jobs=2, report=report)
    assert [child.exitcode is None for child in children.started] == [False, False]


def test_all_children_are_asked_to_stop_before_one_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each needs the time of a step and of a checkpoint, and they need it side by side."""

    def do(name: str, tell: Callable[..., None]) -> None:
        try:
            tell(6)
            time.sleep(60)
        finally:
            (tmp_path / name).touch()
            until = time.monotonic() + 20
            while len(list(tmp_path.glob("?"))) < 3 and time.monotonic() < until:
                time.sleep(0.01)
            (tmp_path / f"{name}.seen").write_text(str(len(list(tmp_path.glob("?")))))

    children_that(monkeypatch, do)
    runs, ready = some_runs(tmp_path / "out", *"abc"), set[str]()

    def report(run: Run, event: Event) -> None:
        ready.add(run.name)
        if len(ready) == len(runs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare("tiny", "question", runs, tmp_path / "out", jobs=3, report=report)
    assert [(tmp_path / f"{run.name}.seen").read_text() for run in runs] == ["3"] * 3


def test_a_folder_with_other_runs_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first, second = some_runs(tmp_path, "first", "second")
    with pytest.raises(Killed):
        train(tiny_recipe(train={"seed": 8}), second.out, report=kill_at_5)
    children = children_that(monkeypatch, lambda name, tell: sys.exit(1))
    with pytest.raises(UserError, match="second holds a run with other settings"):
        compare("tiny", "question", [first, second], tmp_path, jobs=1)
    assert children.started == []
