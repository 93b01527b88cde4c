"""What is watched: against rollout on the same tokens, against the history itself, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_recipe import tiny_recipe
from torch import Tensor, nn

from reverie.errors import UserError
from reverie.memory.file import file_reader, read_memory, to_bytes
from reverie.memory.history import History
from reverie.memory.memory import Memory, sleep_over
from reverie.model import HybridLM
from reverie.recipe import Recipe
from reverie.recipe.build import build_model
from reverie.results.checkpoint import FILE_NAME, Progress
from reverie.results.watch.collect import Watch, watch_memory, watch_run
from reverie.sleep import SleepConfig, rollout
from reverie.tasks import Batch
from reverie.train.checkpoint import save_checkpoint

MakeModel = Callable[..., HybridLM]

STATES, L, K = 3, 7, 20  # a window is t and one state of 6 bits


def recipe_of_three_windows(**sections: dict[str, object]) -> Recipe:
    return tiny_recipe(**{"task": {"num_states": STATES}, "sleep": {"window_size": L}} | sections)


def untrained(recipe: Recipe) -> nn.Module:
    """Of random parameters, so that what it answers depends on all it has read."""
    model, random = build_model(recipe.model, 0), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) / parameter.shape[-1] ** 0.5)
    return model


def run_of(recipe: Recipe, folder: Path) -> nn.Module:
    """A run's checkpoint, and its model."""
    model = untrained(recipe)
    folder.mkdir(exist_ok=True)
    save_checkpoint(folder / FILE_NAME, recipe, model, [], Progress())
    return model


def right_after(model: nn.Module, batch: Batch, config: SleepConfig, windows: int) -> Tensor:
    """[scored]: by rollout over a text that has only its first windows and the questions."""
    text = STATES * L
    kept = [*range(windows * L), *range(text, batch.tokens.shape[1])]
    mask = batch.loss_mask[:, kept]
    logits, _ = rollout(model, batch.tokens[:, kept], mask, config)  # pyright: ignore[reportArgumentType]
    return logits.argmax(-1) == batch.targets[:, kept][mask]


@pytest.mark.parametrize("tolerance", [None, 0.2])
@torch.no_grad()
def test_answers_are_those_of_rollout_over_what_was_read(tmp_path: Path, tolerance: float | None) -> None:
    recipe = recipe_of_three_windows()
    model = run_of(recipe, tmp_path)
    watch = watch_run(tmp_path, example=5, examples=K, num_sleep_passes=4, tolerance=tolerance)
    batch = recipe.task.batch("test", seed=0, step=0, examples=range(5, 5 + K))
    by_depth, by_question = watch.answers
    assert (by_depth.by, by_question.by) == ("rollout steps t", "question")
    for windows in range(STATES + 1):
        right = right_after(model, batch, watch.config, windows)
        assert watch.accuracy[windows] == pytest.approx(float(right.float().mean()))
        for answers, kind in ((by_depth, batch.depth), (by_question, batch.question)):
            for line in answers.lines:
                asked = kind[batch.loss_mask] == int(line.name)
                assert line.questions == int(asked.sum())
                assert line.accuracy[windows] == pytest.approx(float(right[asked].float().mean()))
    assert len({tuple(line.accuracy) for line in by_question.lines}) > 1  # else this would prove nothing


@torch.no_grad()
def test_chance_is_the_task_s(tmp_path: Path) -> None:
    recipe = recipe_of_three_windows()
    run_of(recipe, tmp_path)
    by_depth, by_question = watch_run(tmp_path, examples=K).answers
    chance = recipe.task.chance()
    assert {int(line.name): line.chance for line in by_depth.lines} == chance
    depths = recipe.task.batch("test", seed=0, step=0, examples=range(K)).depth[:, STATES * L :]
    for line in by_question.lines:
        asked = depths[:, int(line.name)].tolist()
        assert line.chance == pytest.approx(sum(chance[t] for t in asked) / K)


def test_questions_have_lines_of_their_own_only_where_each_has_a_window(tmp_path: Path) -> None:
    run_of(recipe_of_three_windows(sleep={"window_size": STATES * L}), tmp_path)
    assert [answers.by for answers in watch_run(tmp_path, examples=K).answers] == ["rollout steps t"]


@torch.no_grad()
def test_windows_are_those_of_the_one_text(tmp_path: Path) -> None:
    recipe = recipe_of_three_windows()
    model, history = run_of(recipe, tmp_path), History()
    watch = watch_run(tmp_path, example=3, examples=K)
    tokens = recipe.task.batch("test", seed=0, step=0, examples=range(3, 4)).tokens[:, : STATES * L]
    sleep_over(model, tokens, recipe.sleep, history=history)
    assert [window.change for window in watch.windows] == [window.change for window in history.windows]
    assert [(w.start, w.tokens, w.passes) for w in watch.windows] == [(i * L, L, 2) for i in range(STATES)]
    assert watch.num_passes == recipe.sleep.num_sleep_passes
    assert watch.fast_weight_blocks == [1]


def test_batches_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_of(recipe_of_three_windows(), tmp_path)
    whole = watch_run(tmp_path, examples=K)
    monkeypatch.setattr("reverie.results.watch.collect.BATCH_TOKENS", 3 * (STATES * (L + 1)))
    assert watch_run(tmp_path, examples=K).answers == whole.answers


def test_numbers_survive_json(tmp_path: Path) -> None:
    run_of(recipe_of_three_windows(), tmp_path)
    watch = watch_run(tmp_path, examples=2, tolerance=0.5)
    assert Watch.model_validate_json(watch.model_dump_json()) == watch


def test_a_memory_shows_its_history(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model("attn", "gdn")
    config, history, path = SleepConfig(window_size=4, num_sleep_passes=3), History(), tmp_path / "book.safetensors"
    sleep_over(model, torch.randint(11, (1, 10)), config, history=history).save(path)
    watch = watch_memory(path)
    assert tuple(watch.windows) == history.windows
    assert (watch.name, watch.config, watch.answers) == ("book.safetensors", config, [])
    assert watch.title == "book.safetensors: 3 windows of 4 tokens slept over, 3 passes"


def test_a_memory_without_history_says_how_to_get_one(tiny_model: MakeModel, tmp_path: Path) -> None:
    path = tmp_path / "book.safetensors"
    memory: Memory = sleep_over(tiny_model("attn", "gdn"), torch.zeros(1, 4).long(), SleepConfig(window_size=4))
    memory.save(path)
    with pytest.raises(UserError, match=r"no history to watch: .*history=History\(\)"):
        watch_memory(path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"example": -1}, "from 0"),
        ({"example": 10**30}, "from 0"),
        ({"examples": 0}, "at least one"),
        ({"num_sleep_passes": 0}, "from 1 to 10,000"),
        ({"tolerance": 0.0}, "above 0"),
        ({"tolerance": float("nan")}, "above 0"),
    ],
)
def test_refuses_numbers_out_of_range(tmp_path: Path, arguments: dict[str, float], sentence: str) -> None:
    run_of(recipe_of_three_windows(), tmp_path)
    with pytest.raises(UserError, match=sentence):
        watch_run(tmp_path, **arguments)  # pyright: ignore[reportArgumentType]


def test_refuses_a_model_without_memory(tmp_path: Path) -> None:
    run_of(recipe_of_three_windows(model={"layers": ["attn", "attn"]}), tmp_path)
    with pytest.raises(UserError, match="without fast weights"):
        watch_run(tmp_path)


def test_refuses_a_run_that_never_sleeps(tmp_path: Path) -> None:
    run_of(recipe_of_three_windows(sleep={"window_size": 100}), tmp_path)
    with pytest.raises(UserError, match="first window of 100"):
        watch_run(tmp_path)


def test_refuses_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run"):
        watch_run(tmp_path)


def test_a_history_beyond_belief_is_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    """In a sentence, and not in a figure that nothing can draw."""
    history, path = History(), tmp_path / "book.safetensors"
    sleep_over(tiny_model("gdn"), torch.ones(1, 4).long(), SleepConfig(window_size=4), history=history).save(path)
    content = read_memory(file_reader(path), str(path))
    assert content.history is not None
    far = {**content.history, "totals": torch.tensor([1e308, 1e308], dtype=torch.float64)}
    path.write_bytes(to_bytes(content.info, content.state, far))
    with pytest.raises(UserError, match="is not a memory: passes and seconds of a history are numbers from 0 to"):
        watch_memory(path)
