"""`load_model`: any model on disk, as it was left there, and one sentence where there is none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import assert_one_line, in_empty_folder
from safetensors import safe_open
from tiny_recipe import tiny_recipe
from tiny_sleeper import FACTS, TASKS, disturbed, recipe_of, tiny_run, tiny_sleeper

from reverie.errors import UserError
from reverie.memory.memory import Memory, sleep_over
from reverie.recipe.build import build_model
from reverie.results.checkpoint import FILE_NAME, Progress
from reverie.sleep import Context, read, rollout
from reverie.talk.shipped import export_example, export_model, load_example_text
from reverie.talk.sleeper import load_memory, load_model
from reverie.tasks import GsmInfinite
from reverie.train.checkpoint import save_checkpoint


@pytest.mark.parametrize("task", TASKS)
def test_a_run_computes_what_it_did(tmp_path: Path, task: str) -> None:
    recipe = recipe_of(task)
    trained = disturbed(build_model(recipe.model, 0), 0)
    sleeper = tiny_sleeper(tmp_path, task)
    assert (sleeper.name, sleeper.sleep_config) == (f"tiny {task}", recipe.sleep)
    batch = recipe.task.batch("test", 0, 0, range(2))
    wanted, _ = rollout(trained, batch.tokens, batch.loss_mask, recipe.sleep)
    assert torch.equal(rollout(sleeper.sleeping, batch.tokens, batch.loss_mask, recipe.sleep)[0], wanted)


def test_an_exported_model_is_the_run_without_its_optimisers(tmp_path: Path) -> None:
    run, file = tiny_run(tmp_path / "run"), tmp_path / "small.safetensors"
    export_model(run, file)
    sleepers = [load_model(run), load_model(file)]
    memories = [sleep_over(sleeper, [sleeper.text(FACTS)]) for sleeper in sleepers]
    assert sleepers[1].name == "small"
    assert memories[0].fingerprint == memories[1].fingerprint
    assert all(map(torch.equal, *(memory.context.state.fast_weights[1:] for memory in memories)))
    with safe_open(file, "pt") as content:
        assert all(name.startswith("model.") for name in content.keys())  # noqa: SIM118 (no mapping)
        assert json.loads(content.metadata()["recipe"])["name"] == "tiny"


def test_the_example_is_a_text_of_the_task(tmp_path: Path) -> None:
    """Its words and questions are the tokens and targets of that held-out example."""
    export_example(tiny_run(tmp_path / "run"), tmp_path / "example", 2)
    sleeper, shown = load_model(tmp_path / "example" / "model.safetensors"), load_example_text(tmp_path / "example")
    task = recipe_of("words").task
    assert isinstance(task, GsmInfinite)
    batch = task.batch("test", 0, 0, range(2, 3))
    start = task.sections()[0].length
    assert sleeper.encode(shown.text) == [i for i in batch.tokens[0, :start].tolist() if i != task.pad_id]
    asked = [i for question, _ in shown.questions for i in sleeper.question(question)]
    assert asked == batch.tokens[0, start:].tolist()[: len(asked)]
    answers = [i for _, answer in shown.questions for i in sleeper.encode(answer)]
    assert answers == batch.targets[batch.loss_mask].tolist()
    with pytest.raises(UserError, match="recipe tiny has no texts with several questions"):
        export_example(tiny_run(tmp_path / "depo", "depo"), tmp_path / "none", 0)


def test_there_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"there is no model at {tmp_path}: give a run of reverie train, a folder of"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="there is no model at nowhere: give a run"):
        load_model("nowhere")
    with pytest.raises(UserError, match=f"there is no run at {tmp_path}"):
        export_model(tmp_path, tmp_path / "out")
    (tmp_path / "book.txt").write_text(FACTS)
    memory, run = tmp_path / "memory.safetensors", tiny_run(tmp_path / "run")
    sleeper = load_model(run)
    sleep_over(sleeper, [sleeper.text(FACTS)]).save(memory)
    for path in (tmp_path / "book.txt", memory):
        with pytest.raises(UserError, match=f"{path} holds no model that this version of reverie can read"):
            load_model(path)
    checkpoint = run / FILE_NAME
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    with pytest.raises(UserError, match="is cut short or damaged"):
        load_model(run)


def test_a_transformer_is_loaded_though_it_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = tiny_recipe(model={"layers": ["attn"]})
    trained = build_model(recipe.model, 0)
    save_checkpoint(tmp_path / FILE_NAME, recipe, trained, [], Progress())
    model, tokens = load_model(tmp_path), torch.arange(4)[None]
    logits, _ = read(model, tokens, Context.empty(model), model.sleep_config)
    assert torch.equal(logits, read(trained, tokens, Context.empty(trained), recipe.sleep)[0])
    reverie = in_empty_folder(monkeypatch, capsys, tmp_path)
    done = reverie("ask", tmp_path, "1", "--memory", tmp_path / "none", "--device", "cpu")
    assert_one_line(done, "holds a transformer, which has no fast weights")


def test_nothing_to_read_or_to_answer(tmp_path: Path) -> None:
    sleeper = tiny_sleeper(tmp_path)
    with pytest.raises(UserError, match="there is nothing to read: the text is empty"):
        sleeper.text(" \n")
    with pytest.raises(UserError, match="there is nothing to answer: the question is empty"):
        sleeper.question(" ")


def test_a_memory_keeps_its_passes(tmp_path: Path) -> None:
    """Whatever the model would spend now; but its windows are to be those of the model."""
    sleeper = tiny_sleeper(tmp_path)
    adaptive = sleeper.sleep_config.model_copy(update={"num_sleep_passes": 7, "tolerance": 0.25})
    for made in (adaptive, sleeper.sleep_config):
        Memory.empty(sleeper, made).save(tmp_path / "m.safetensors")
        for config in (adaptive, sleeper.sleep_config):
            assert load_memory(tmp_path / "m.safetensors", replace(sleeper, sleep_config=config)).config == made
    other = sleeper.sleep_config.model_copy(update={"eviction": "sliding"})
    with pytest.raises(UserError, match="was made with eviction hard, and the model sleeps with sliding"):
        load_memory(tmp_path / "m.safetensors", replace(sleeper, sleep_config=other))
