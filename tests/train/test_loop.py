"""Same seed, same curve; kill and resume, same curve; no process goes on without the others."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from same_run import Killed, assert_same_run, kill_at, read_run_card
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_recipe import tiny_recipe
from together import together
from torch import Tensor

import reverie.train.run
import reverie.train.step
from reverie.errors import UserError
from reverie.interrupts import Stopped
from reverie.model import HybridLM
from reverie.recipe import Recipe, TrainConfig, load_recipe
from reverie.results.checkpoint import FILE_NAME, load_checkpoint
from reverie.results.run import CARD_NAME
from reverie.sleep.labels import count_labels
from reverie.tasks import Batch, Task
from reverie.train.curriculum import scheduled_depth
from reverie.train.data import KILLED, Ready, make_batch
from reverie.train.distributed import Processes
from reverie.train.run import train

Undisturbed = Callable[[Recipe], Path]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The folder of a run by that recipe, trained without a break; the same run for the same recipe."""
    runs: dict[str, Path] = {}

    def run(recipe: Recipe) -> Path:
        key = recipe.model_dump_json()
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("undisturbed")
            train(recipe, runs[key])
        return runs[key]

    return run


def losses_of(recipe: Recipe, out: Path) -> list[float]:
    losses: list[float] = []
    train(recipe, out, report=lambda progress, loss: losses.append(loss))
    return losses


def files(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_seed_gives_the_same_run_to_the_last_bit(tmp_path: Path, undisturbed: Undisturbed):
    torch.manual_seed(len(str(tmp_path)))  # what the process did before must not matter
    train(tiny_recipe(), tmp_path)
    assert_same_run(tmp_path, undisturbed(tiny_recipe()), but="rng")


def test_another_seed_gives_other_weights_and_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    zero, one = (batches(monkeypatch, tiny_recipe(train={"seed": seed}), tmp_path / str(seed)) for seed in (0, 1))
    assert not any(torch.equal(a, b) for a, b in zip(zero, one, strict=True))
    weights = [load_checkpoint(tmp_path / seed / FILE_NAME).tensors["model.embedding.weight"] for seed in "01"]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("step", [1, 4, 5, 6])
def test_kill_and_resume_is_the_run_without_the_break(tmp_path: Path, step: int, undisturbed: Undisturbed):
    """Killed before the first checkpoint, right behind one, between two, and with everything but the card done."""
    recipe = tiny_recipe(train={"curriculum": 0.7})
    with pytest.raises(Killed):
        train(recipe, tmp_path, report=kill_at(step))
    assert not (tmp_path / CARD_NAME).exists()
    train(recipe, tmp_path, resume=True)
    assert_same_run(tmp_path, undisturbed(recipe))


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"dtype": "bfloat16"}},
        {"model": {"layers": ["jet", "attn"]}, "sleep": {"eviction": "sliding", "looped_blocks": [0, 1]}},
        {"optim": {"weight_decay": 0.1, "decay": "linear"}},
    ],
)
def test_killed_twice_with_other_models_and_optimisers(
    tmp_path: Path, sections: dict[str, dict[str, Any]], undisturbed: Undisturbed
):
    recipe = tiny_recipe(**sections)
    for step in (3, 5):
        with pytest.raises(Killed):
            train(recipe, tmp_path, resume=step > 3, report=kill_at(step))
    train(recipe, tmp_path, resume=True)
    assert_same_run(tmp_path, undisturbed(recipe))


def test_killed_between_the_two_optimisers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Undisturbed):
    steps, step = [], torch.optim.AdamW.step

    def dying_step(self: torch.optim.AdamW, *arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == 4:
            raise Killed
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", dying_step)
        with pytest.raises(Killed):
            train(tiny_recipe(), tmp_path)
    train(tiny_recipe(), tmp_path, resume=True)
    assert_same_run(tmp_path, undisturbed(tiny_recipe()))


def test_the_curves_of_a_resumed_run_have_each_point_once(tmp_path: Path):
    recipe = tiny_recipe(train={"eval_every": 2, "checkpoint_every": 3})
    with pytest.raises(Killed):
        train(recipe, tmp_path, report=kill_at(5))
    time.sleep(1.1)  # TensorBoard orders the files of one process by the second
    card = train(recipe, tmp_path, resume=True)
    assert [point.step for point in card.curve] == [2, 4, 6]
    assert [point.tokens for point in card.curve] == [step * 8 * 16 for step in (2, 4, 6)]
    times = [point.wall_time_s for point in card.curve]
    assert times == sorted(times)
    assert times[0] > 0
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"loss/train", "loss/held-out", "accuracy/exact", "accuracy/depth 4"} <= set(board.Tags()["scalars"])
    written = {event.step: event.value for event in board.Scalars("loss/train")}
    assert [event.step for event in board.Scalars("loss/train")] == [2, 4, 6]
    assert written == pytest.approx({point.step: point.train_loss for point in card.curve})


def test_a_point_of_the_curve_is_the_mean_loss_since_the_point_before(tmp_path: Path):
    losses: list[float] = []
    card = train(tiny_recipe(train={"eval_every": 4}), tmp_path, report=lambda progress, loss: losses.append(loss))
    assert [point.step for point in card.curve] == [4, 6]  # the last step is always measured
    parts = (losses[:4], losses[4:])
    assert [point.train_loss for point in card.curve] == pytest.approx([sum(part) / len(part) for part in parts])


def test_resume_with_another_recipe_is_refused(tmp_path: Path):
    with pytest.raises(Killed):
        train(tiny_recipe(), tmp_path, report=kill_at(2))
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"made by another recipe; resume with the settings it was started with"):
        train(tiny_recipe(sleep={"num_sleep_passes": 3}), tmp_path, resume=True)
    assert files(tmp_path) == before


def test_a_folder_with_a_run_is_left_alone(tmp_path: Path):
    train(tiny_recipe(), tmp_path)
    before = files(tmp_path)
    with pytest.raises(UserError, match="already holds a run: resume it, or choose another folder"):
        train(tiny_recipe(), tmp_path)
    assert files(tmp_path) == before


def test_resume_without_a_run_is_refused_and_makes_nothing(tmp_path: Path):
    with pytest.raises(UserError, match="holds no run to go on with"):
        train(tiny_recipe(), tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()


def test_a_run_has_its_checkpoint_from_the_start(tmp_path: Path):
    """A folder that cannot be written, or a second run in it, shows at once and not after hours."""
    with pytest.raises(Killed):
        train(tiny_recipe(train={"checkpoint_every": 1000}), tmp_path, report=kill_at(1))
    assert load_checkpoint(tmp_path / FILE_NAME).progress.step == 0


# -- what a run sees


def batches(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, out: Path) -> list[Tensor]:
    """The tokens and labels that training puts through the model, step by step."""
    seen: list[Tensor] = []
    with monkeypatch.context() as patch:
        loss_sum = reverie.train.step.loss_sum

        def watch(model: HybridLM, batch: Batch, *others: Any, **options: Any) -> Any:
            seen.append(torch.stack([batch.tokens, batch.loss_mask.long()]))
            return loss_sum(model, batch, *others, **options)

        patch.setattr(reverie.train.step, "loss_sum", watch)
        train(recipe, out)
    return seen


def test_every_model_and_every_number_of_passes_sees_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shared = {"train": {"curriculum": 0.8, "steps": 4}}
    variants: list[dict[str, dict[str, Any]]] = [
        {"sleep": {"num_sleep_passes": 1}},
        {"sleep": {"num_sleep_passes": 3}},
        {"sleep": {"num_sleep_passes": 1}, "model": {"layers": ["attn", "attn"]}},
        {"model": {"width": 32}, "optim": {"matrices": {"lr": 1e-4}}},
    ]
    first, *others = (
        batches(monkeypatch, tiny_recipe(**shared, **sections), tmp_path / str(i))
        for i, sections in enumerate(variants)
    )
    assert len(first) == 4
    assert not torch.equal(first[0], first[1])
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_data_of_a_step_are_those_of_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = tiny_recipe(train={"seed": 5, "curriculum": 0.8})
    seen = batches(monkeypatch, recipe, tmp_path)
    for step, tokens_and_mask in enumerate(seen):
        batch: Batch = recipe.task.batch(
            "train", 5, step, range(8), max_depth=scheduled_depth(recipe.train, recipe.task.depths(), step)
        )
        assert torch.equal(tokens_and_mask[0], batch.tokens)
        assert torch.equal(tokens_and_mask[1], batch.loss_mask.long())


# -- what a run leaves


def test_the_report_comes_after_every_step(tmp_path: Path):
    seen = []
    train(tiny_recipe(), tmp_path, report=lambda progress, loss: seen.append((progress.step, progress.tokens)))
    assert seen == [(step, step * 8 * 16) for step in range(1, 7)]


def test_it_learns(tmp_path: Path):
    """The first bit of the state that it slept over."""
    recipe = tiny_recipe(
        task={"num_states": 1, "width": 3, "rollout_steps": 0},
        sleep={"window_size": 3},
        optim={"matrices": {"lr": 3e-2}, "rest": {"lr": 3e-2}},
        train={"steps": 60, "batch_size": 16, "eval_every": 60, "checkpoint_every": 60},
    )
    losses = losses_of(recipe, tmp_path)
    assert losses[0] == pytest.approx(math.log(3), rel=1e-4)  # an untrained model knows nothing
    assert sum(losses[-10:]) / 10 < 0.2
    assert read_run_card(tmp_path).score["exact_accuracy"] == 1.0


@pytest.mark.slow
def test_a_task_that_cannot_make_its_examples_leaves_no_run_behind(tmp_path: Path) -> None:
    short = ["task.length=[20, 30]", "task.num_questions=1", "train.steps=2"]
    with pytest.raises(UserError, match="so length must allow that"):
        train(load_recipe("gsm_infinite/nano", short), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- several processes


def ends(processes: Processes, out: Path) -> list[str]:
    """How training ends if the data processes of one rank die, together with a SIGTERM to that rank, and without."""
    said = []
    for rank, sent in [(0, True), (1, True), (0, False), (1, False)]:

        @contextmanager
        def dying(
            task: Task,
            config: TrainConfig,
            window_size: int,
            first: int,
            examples: range,
            device: torch.device,
            deepest: Any,
            rank: int = rank,
            sent: bool = sent,
        ) -> Iterator[Iterator[Ready]]:
            def made() -> Iterator[Ready]:
                for step in range(first, config.steps):
                    if (processes.rank, step) == (rank, 3):
                        if sent:
                            signal.raise_signal(signal.SIGTERM)
                        raise BrokenProcessPool
                    batch = make_batch(task, config, step, examples)
                    yield Ready(batch, count_labels(batch.loss_mask, window_size))

            yield made()

        reverie.train.run.ready_batches = dying
        with pytest.raises((UserError, Stopped)) as caught:
            train(tiny_recipe(), out / f"{rank}{sent}", processes=processes)
        said.append(str(caught.value))
    return said


def test_one_process_without_data_ends_all_of_them_before_the_same_step(tmp_path: Path):
    """Else it would never take part in what the others are waiting for."""
    ours, theirs = together(2, ends, tmp_path)
    stopped = "stopped after step 3 of 6 (SIGTERM), saved"
    assert ours == theirs == [stopped, stopped, f"rank 0 of 2: {KILLED}", f"rank 1 of 2: {KILLED}"]
    assert load_checkpoint(tmp_path / "1True" / FILE_NAME).progress.step == 3
    assert load_checkpoint(tmp_path / "1False" / FILE_NAME).progress.step == 2


# -- beginning with the weights of another run


def test_a_run_begins_with_the_weights_of_another(tmp_path: Path, undisturbed: Undisturbed):
    source = undisturbed(tiny_recipe())
    recipe = tiny_recipe(train={"init_from": str(source), "seed": 3})
    with pytest.raises(Killed):
        train(recipe, tmp_path, report=kill_at(1))
    train(recipe, tmp_path / "same", report=lambda *_: None)
    first, theirs = load_checkpoint(tmp_path / FILE_NAME), load_checkpoint(source / FILE_NAME)
    assert first.progress.step == 0
    for name, tensor in first.tensors.items():
        if name.startswith("model."):
            assert torch.equal(tensor, theirs.tensors[name])
    train(recipe, tmp_path, resume=True)  # from its own checkpoint, not from there again
    assert_same_run(tmp_path, tmp_path / "same")


@pytest.mark.parametrize(
    ("run", "model", "sentence"),
    [
        ("nowhere", {}, "train.init_from is .*nowhere, but there is no checkpoint: give the folder of a run"),
        ("source", {"width": 32}, r"whose model is not the one of this recipe: their \[model\] must agree"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, undisturbed: Undisturbed, run: str, model: dict[str, Any], sentence: str
):
    path = undisturbed(tiny_recipe()) if run == "source" else tmp_path / run
    with pytest.raises(UserError, match=sentence):
        train(tiny_recipe(model=model, train={"init_from": str(path)}), tmp_path / "run")
    assert not (tmp_path / "run" / FILE_NAME).exists()
