"""Runs on disk evaluated at several N and with adaptive sleep: the numbers are those of `evaluate`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipe import tiny_recipe

from reverie.errors import UserError
from reverie.recipe.random_passes import RandomPasses
from reverie.results.evaluate import evaluate
from reverie.results.passes.card import PassesCard
from reverie.results.passes.evaluation import evaluate_passes
from reverie.results.run import load_run, trained_model
from reverie.train.run import train

RANDOM = RandomPasses(distribution="uniform", mean=2, max=3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two seeds with a fixed N, one with a random one."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        train(tiny_recipe(train={"seed": seed, "checkpoint_every": 1 + seed}), folder / f"fixed-{seed}")
    train(tiny_recipe(train={"num_sleep_passes": RANDOM.model_dump()}), folder / "random-0")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def card(runs: dict[str, Path]) -> PassesCard:
    places = [runs["random-0"], runs["fixed-1"], runs["fixed-0"]]
    return evaluate_passes(places, [4, 1, 2, 2], [0.01, 0.6], num_examples=16)


def changed_run(folder: Path, **sections: dict[str, Any]) -> Path:
    train(tiny_recipe(**{**sections, "train": {"steps": 1, **sections.get("train", {})}}), folder)
    return folder


def test_regimes_and_settings_come_in_order(card: PassesCard):
    assert card.num_sleep_passes == [1, 2, 4]
    assert card.tolerances == [0.6, 0.01]
    assert [(regime.trained_with, regime.seeds) for regime in card.regimes] == [(2, [0, 1]), (RANDOM, [0])]
    for run in card.runs:
        assert [(point.num_sleep_passes, point.tolerance) for point in run.fixed] == [(1, None), (2, None), (4, None)]
        assert [(point.num_sleep_passes, point.tolerance) for point in run.adaptive] == [(4, 0.6), (4, 0.01)]


def test_every_point_is_what_evaluate_finds(card: PassesCard, runs: dict[str, Path]):
    for run, name in zip(card.runs, ["fixed-0", "fixed-1", "random-0"], strict=True):
        checkpoint = load_run(runs[name])
        recipe, model = checkpoint.recipe, trained_model(checkpoint)
        for point in run.fixed:
            sleep = recipe.sleep.model_copy(update={"num_sleep_passes": point.num_sleep_passes})
            assert point.score == evaluate(model, recipe.task, sleep, 16).score.summary()
            assert point.mean_passes == point.num_sleep_passes
        for point in run.adaptive:
            sleep = recipe.sleep.model_copy(update={"num_sleep_passes": 4, "tolerance": point.tolerance})
            found = evaluate(model, recipe.task, sleep, 16)
            assert (point.score, point.mean_passes) == (found.score.summary(), found.mean_passes)
            assert 2 <= point.mean_passes <= 4
        assert run.fixed[0].score["examples"] == card.examples == 16


def test_the_card_says_where_its_runs_come_from(card: PassesCard, runs: dict[str, Path]):
    for run in card.runs:
        assert (run.training.steps, run.training.tokens, run.planned_steps) == (6, 6 * 8 * 16, 6)
        assert run.training.hardware is not None
        assert run.training.commit is not None
        assert run.training.wall_time_s > 0
    assert card.runs[1].recipe == load_run(runs["fixed-1"]).recipe.model_dump(mode="json")
    assert card.metric == "question"
    assert card.metric_chance == pytest.approx(sum(card.chance.by_depth[d] for d in "1234") / 4)
    assert card.wall_time_s >= sum(point.wall_time_s for run in card.runs for point in run.fixed + run.adaptive)


def test_a_run_that_has_not_ended_has_no_commit(runs: dict[str, Path], tmp_path: Path):
    place = load_run(runs["fixed-0"]).path
    (tmp_path / place.name).write_bytes(place.read_bytes())
    (run,) = evaluate_passes([tmp_path], [1], num_examples=2).runs
    assert (run.training.steps, run.training.commit, run.training.hardware) == (6, None, None)


def test_the_loosest_tolerance_wakes_behind_pass_2(runs: dict[str, Path]):
    (run,) = evaluate_passes([runs["fixed-0"]], [1, 2, 6], [1e6, 1e-9], num_examples=8).runs
    loose, tight = run.adaptive
    assert (loose.mean_passes, tight.mean_passes) == (2, 6)
    for adaptive, fixed in ((loose, run.fixed[1]), (tight, run.fixed[2])):
        assert adaptive.score["question_accuracy"] == fixed.score["question_accuracy"]
        assert adaptive.score["loss"] == pytest.approx(fixed.score["loss"], rel=1e-5)


def test_examples_are_as_the_recipe_says(runs: dict[str, Path]):
    assert evaluate_passes([runs["fixed-0"]], [1]).examples == 24


def test_every_evaluation_is_reported_before_it(runs: dict[str, Path]):
    seen: list[tuple[int, int, str]] = []
    places = [runs["fixed-0"], runs["random-0"]]
    evaluate_passes(places, [1, 2], [0.5], num_examples=2, report=lambda *part: seen.append(part))
    assert [(done, total) for done, total, _ in seen] == [(i, 6) for i in range(6)]
    assert [what for _, _, what in seen][1:4] == [
        "N = 2, seed 0: N = 2", "N = 2, seed 0: tolerance 0.5", "random N, 1 to 3, seed 0: N = 1"
    ]  # fmt: skip


def test_it_leaves_the_number_of_threads_as_it_was(runs: dict[str, Path]):
    torch.set_num_threads(2)
    try:
        card = evaluate_passes([runs["fixed-0"]], [1], num_examples=2)
        assert (card.hardware.threads, torch.get_num_threads()) == (1, 2)
    finally:
        torch.set_num_threads(1)


# -- what is refused


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.inf, math.nan])
def test_a_tolerance_is_a_number_above_0(runs: dict[str, Path], tolerance: float):
    with pytest.raises(UserError, match="the tolerance must be a number above 0"):
        evaluate_passes([runs["fixed-0"]], [2], [tolerance])


def test_less_than_one_pass(runs: dict[str, Path]):
    with pytest.raises(UserError, match="num_sleep_passes must be at least 1, got 0"):
        evaluate_passes([runs["fixed-0"]], [0, 1])


def test_the_same_run_twice(runs: dict[str, Path]):
    with pytest.raises(UserError, match="there are 2 runs trained with N = 2 and seed 0; give one per seed"):
        evaluate_passes([runs["fixed-0"], runs["fixed-0"]], [1])


def test_a_transformer(tmp_path: Path):
    run = changed_run(tmp_path, model={"layers": ["attn"]}, sleep={"num_sleep_passes": 1})
    with pytest.raises(UserError, match="has attention layers alone: the number of sleep passes changes nothing"):
        evaluate_passes([run], [1, 2])


def test_other_tasks_and_metrics(runs: dict[str, Path], tmp_path: Path):
    other = changed_run(tmp_path / "task", task={"width": 5})
    with pytest.raises(UserError, match="cannot be in one figure: they were trained on other tasks"):
        evaluate_passes([runs["fixed-0"], other], [1])
    other = changed_run(tmp_path / "metric", train={"metric": "exact"})
    with pytest.raises(UserError, match=r"train.metric is (question|exact) in one and (question|exact) in the other"):
        evaluate_passes([runs["fixed-0"], other], [1])


def test_runs_that_differ_in_more_than_the_seed_are_curves_of_their_own(runs: dict[str, Path], tmp_path: Path):
    """Labelled by the keys in which they differ, but for those that do not bear on what is learned."""
    other = changed_run(tmp_path, train={"seed": 5, "steps": 6, "eval_every": 2}, model={"mlp_width": 32})
    card = evaluate_passes([runs["fixed-0"], other, runs["fixed-1"]], [1, 2], num_examples=2)
    assert [(regime.settings, regime.seeds) for regime in card.regimes] == [
        ({"model.mlp_width": "24"}, [0, 1]), ({"model.mlp_width": "32"}, [5])
    ]  # fmt: skip
    assert [regime.label for regime in card.regimes] == ["N = 2, mlp_width = 24", "N = 2, mlp_width = 32"]
    assert PassesCard.model_validate(card.model_dump()) == card


def test_a_run_that_never_sleeps(tmp_path: Path):
    run = changed_run(tmp_path, sleep={"window_size": 16})
    with pytest.raises(UserError, match="never sleeps: its windows of 16 tokens all hold questions"):
        evaluate_passes([run], [1, 2])


def test_no_run(tmp_path: Path):
    with pytest.raises(UserError, match="there is no run at"):
        evaluate_passes([tmp_path], [1])
    with pytest.raises(UserError, match="there is no run to evaluate"):
        evaluate_passes([], [1])
