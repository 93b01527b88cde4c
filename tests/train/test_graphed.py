"""Recorded steps are those of `take_step`: their arithmetic anywhere, the recording itself where there is CUDA."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipe import tiny_recipe
from torch import Tensor

import reverie.train.run
from reverie.errors import UserError
from reverie.interrupts import Stopped
from reverie.model import HybridLM, new_model
from reverie.recipe import Recipe
from reverie.results.checkpoint import FILE_NAME, load_checkpoint
from reverie.sleep.labels import count_labels
from reverie.tasks import Batch
from reverie.train.data import Ready, make_batch
from reverie.train.distributed import ParallelModel, Processes
from reverie.train.graphed import WARM_UP, GraphedSteps, Record, Replay, _Kind, check_graphable, cuda_graphs
from reverie.train.optim import build_optimizers
from reverie.train.run import train
from reverie.train.schedule import Schedule
from reverie.train.step import EagerSteps, Step, loss_sum

STEPS = 8
RANDOM = {"num_sleep_passes": {"distribution": "uniform", "mean": 2, "max": 3}}
DEPO: dict[str, Any] = {
    "name": "depo",
    "max_nodes": 6,
    "min_nodes": 4,
    "mini_vocab": 4,
    "num_queries": 3,
    "max_hops": 2,
    "test_hops": [1, 2],
}


def ready(recipe: Recipe, step: int) -> Ready:
    batch = make_batch(recipe.task, recipe.train, step)
    return Ready(batch, count_labels(batch.loss_mask, recipe.sleep.window_size))


class Recorder:
    """In place of CUDA graphs: recording computes nothing, and replaying reads what stands where it stood."""

    def __init__(self) -> None:
        self.recorded, self.replayed = 0, 0

    def __call__(self, compute: Callable[[], Tensor]) -> Replay:
        self.recorded += 1

        def replay() -> Tensor:
            self.replayed += 1
            return compute()

        return replay


def run_of(recipe: Recipe) -> Any:
    model = new_model(recipe.hybrid, 0)
    return Schedule.of(recipe), model, build_optimizers(model, recipe.optim), ParallelModel(model)


def depo_recipe(window_size: int) -> Recipe:
    """Where the labels stand differs from example to example; in windows of 6, also which of them have any."""
    tiny = tiny_recipe(sleep={"window_size": window_size}, train={"steps": STEPS})
    data = tiny.model_dump(exclude={"model": {"vocab_size"}})
    return Recipe.model_validate({**data, "task": DEPO})


RECIPES = {
    "rule 110": tiny_recipe(train={"steps": STEPS}),
    "labels here and there": depo_recipe(11),
    "a number of passes for every step": tiny_recipe(sleep=RANDOM, train={"steps": STEPS}),
    "with jet layers": tiny_recipe(train={"steps": STEPS}, model={"layers": ["jet", "attn"]}),
    "made again": tiny_recipe(train={"steps": STEPS, "activation_checkpoint": "window", "bptt_windows": 0}),
}
each_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


@each_recipe
def test_recorded_steps_are_the_steps(recipe: Recipe):
    """To rounding: sums over labels run over other tokens too, which count nothing."""
    arguments, recorder = run_of(recipe), Recorder()
    graphed = GraphedSteps(*arguments, record=recorder)
    eager = EagerSteps(*(other := run_of(recipe)))
    for step in range(STEPS):
        for steps in (graphed, eager):
            steps.take(step, ready(recipe, step), watch=False)
    for mine, theirs in zip(graphed.found(), eager.found(), strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-4)
        assert mine.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-3)
    for (name, mine), theirs in zip(arguments[1].named_parameters(), other[1].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    assert recorder.replayed == STEPS - WARM_UP * recorder.recorded or recipe.train.num_sleep_passes is not None
    assert recorder.recorded >= 1


def test_a_step_whose_rows_sleep_over_different_windows_is_not_recorded():
    recipe, recorder = depo_recipe(6), Recorder()
    steps = GraphedSteps(*run_of(recipe), record=recorder)
    for step in range(STEPS):
        steps.take(step, ready(recipe, step), watch=False)
    assert len(steps.found()) == STEPS
    assert recorder.recorded == 0


def test_what_is_recorded_has_been_computed_before(monkeypatch: pytest.MonkeyPatch):
    """Or a kernel would be compiled while a graph is recorded. Steps that are watched are computed in another way."""
    seen: list[str] = []
    step_of = GraphedSteps._step

    def computed(self: GraphedSteps, *arguments: Any) -> Tensor:
        seen.append("computed")
        return step_of(self, *arguments)

    def record(compute: Callable[[], Tensor]) -> Replay:
        seen.append("recorded")
        return compute

    monkeypatch.setattr(GraphedSteps, "_step", computed)
    recipe = RECIPES["rule 110"]
    steps = GraphedSteps(*run_of(recipe), record=record)
    for step in range(STEPS):
        steps.take(step, ready(recipe, step), watch=step < WARM_UP)
    replayed = STEPS - 2 * WARM_UP
    assert seen == ["computed", "recorded"] + ["computed"] * replayed


@pytest.mark.slow
@each_recipe
def test_nothing_asks_what_is_in_a_tensor_or_stands_elsewhere(recipe: Recipe, monkeypatch: pytest.MonkeyPatch):
    """Tensors on "meta" have no content, and there is no operation between them and those on the CPU."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which does not know "meta"
    with torch.device("meta"):
        model = HybridLM(recipe.hybrid)
    schedule, optimizers = Schedule.of(recipe), build_optimizers(model, recipe.optim)
    steps = GraphedSteps(schedule, model, optimizers, ParallelModel(model, "meta"), Recorder())
    batch, labels = ready(recipe, 0)
    batch = Batch(*(x.to("meta") for x in batch))
    for step in range(2):
        kind = _Kind(schedule.sleep_at(step), False, tuple((labels > 0).any(dim=0).tolist()))
        assert steps._step(kind, batch).shape == (2,)


def test_what_was_found_is_told_once_and_in_order():
    recipe = RECIPES["rule 110"]
    steps = GraphedSteps(*run_of(recipe), record=Recorder())
    for step in range(STEPS):
        steps.take(step, ready(recipe, step), watch=step == 5)
    found = steps.found()
    assert [step.passes is not None for step in found] == [step == 5 for step in range(STEPS)]
    assert all(isinstance(step, Step) for step in found)
    assert steps.found() == []


def test_rare_kinds_of_steps_are_not_recorded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("reverie.train.graphed.MOST_GRAPHS", 1)
    recipe, recorder = tiny_recipe(sleep=RANDOM, train={"steps": 30}), Recorder()
    steps = GraphedSteps(*run_of(recipe), record=recorder)
    for step in range(30):
        steps.take(step, ready(recipe, step), watch=False)
    assert len(steps.found()) == 30
    assert recorder.recorded == 1
    assert 1 <= recorder.replayed < 30 - WARM_UP


def test_a_loss_that_is_not_finite_is_told_with_its_step():
    recipe = RECIPES["rule 110"]
    model = (arguments := run_of(recipe))[1]
    steps = GraphedSteps(*arguments, record=Recorder())
    for step in range(STEPS):
        if step == 5:
            with torch.no_grad():
                model.embedding.weight.fill_(math.nan)
        steps.take(step, ready(recipe, step), watch=False)
    with pytest.raises(FloatingPointError, match="step 6 had a loss of nan"):
        steps.found()


def graphed_on_cpu(monkeypatch: pytest.MonkeyPatch, ahead: int = 4) -> None:
    """As the loop runs them, with the recorder in place of CUDA."""
    monkeypatch.setattr(reverie.train.run, "check_graphable", lambda *_: None)
    monkeypatch.setattr("reverie.train.graphed.cuda_graphs", lambda device: Recorder())
    monkeypatch.setattr("reverie.train.graphed.AHEAD", ahead)
    build = build_optimizers
    monkeypatch.setattr(
        reverie.train.run, "build_optimizers", lambda model, config, *, capturable: build(model, config)
    )


def test_a_run_has_the_same_curve_and_goes_on_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    graphed_on_cpu(monkeypatch)
    settings = {"steps": 12, "eval_every": 5, "checkpoint_every": 4}
    plain = train(tiny_recipe(train=settings), tmp_path / "plain")
    recipe = tiny_recipe(train={**settings, "cuda_graph": True})
    whole = train(recipe, tmp_path / "whole")

    def stop(progress: Any, loss: float) -> None:
        if progress.step == 10:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, Stopped)):
        train(recipe, tmp_path / "broken", report=stop)
    assert load_checkpoint(tmp_path / "broken" / FILE_NAME).progress.step == 8
    resumed = train(recipe, tmp_path / "broken", resume=True)
    for card in (whole, resumed):
        assert [point.step for point in card.curve] == [5, 10, 12]
        for mine, theirs in zip(card.curve, plain.curve, strict=True):
            assert mine.train_loss == pytest.approx(theirs.train_loss, rel=1e-3)
            assert mine.passes is not None
    weights = [load_checkpoint(tmp_path / name / FILE_NAME).tensors for name in ("whole", "plain", "broken")]
    for name, tensor in weights[0].items():
        if name != "rng":
            torch.testing.assert_close(tensor, weights[1][name], rtol=1e-2, atol=1e-3)
            torch.testing.assert_close(tensor, weights[2][name], rtol=1e-2, atol=1e-3)


def test_divergence_between_two_looks_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    graphed_on_cpu(monkeypatch)
    losses: list[Tensor] = []

    def spoilt(*arguments: Any, **options: Any) -> Tensor:
        losses.append(loss_sum(*arguments, **options))
        return losses[-1] * (math.nan if len(losses) == 3 else 1)

    monkeypatch.setattr("reverie.train.graphed.loss_sum", spoilt)
    recipe = tiny_recipe(train={"steps": 12, "cuda_graph": True, "checkpoint_every": 4, "eval_every": 12})
    with pytest.raises(UserError, match=rf"training diverged .*step {WARM_UP + 2} had a loss of nan"):
        train(recipe, tmp_path)
    assert len(losses) > 3  # it went on until it looked
    saved = load_checkpoint(tmp_path / FILE_NAME)
    assert saved.progress.step == 4
    assert all(tensor.isfinite().all() for name, tensor in saved.tensors.items() if name.startswith("model."))


@pytest.mark.parametrize(
    ("device", "processes", "sentence"),
    [
        ("cpu", Processes(), "train.cuda_graph needs a CUDA device, this is cpu: set train.cuda_graph=false"),
        ("cuda", Processes(0, 2, "ddp"), "train.cuda_graph is for a single process"),
    ],
)
def test_where_nothing_can_be_recorded_a_sentence_says_so(device: str, processes: Processes, sentence: str):
    with pytest.raises(UserError, match=sentence):
        check_graphable(new_model(tiny_recipe().hybrid, 0), device, processes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(
    ("name", "dtype", "compiled"),
    [(name, "float32", False) for name in RECIPES] + [("rule 110", "bfloat16", False), ("rule 110", "bfloat16", True)],
)
def test_cuda_graphs_give_the_same_curve(
    name: str, dtype: str, compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recorded: list[Replay] = []

    def counted(device: torch.device) -> Record:
        record = cuda_graphs(device)

        def recording(compute: Callable[[], Tensor]) -> Replay:
            recorded.append(record(compute))
            return recorded[-1]

        return recording

    monkeypatch.setattr("reverie.train.graphed.cuda_graphs", counted)

    def curve(**train_options: Any) -> list[float]:
        data = RECIPES[name].model_dump(mode="json", exclude={"model": {"vocab_size"}})
        data["train"] |= {"dtype": dtype, "steps": 40, "eval_every": 10, **train_options}
        card = train(Recipe.model_validate(data), tmp_path / str(len(list(tmp_path.iterdir()))), device="cuda")
        return [point.train_loss for point in card.curve]

    plain = curve()
    assert not recorded
    assert curve(cuda_graph=True, compile=compiled) == pytest.approx(plain, rel=5e-2 if dtype == "bfloat16" else 1e-2)
    assert recorded
