"""Every kind of file that is read: how one is made, what it means, and how it is damaged."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from damage import Change, in_bytes, in_header, in_json, in_lines
from fake_cards import comparison, curve, passes_card, run_card
from safetensors.torch import load_file, save_file
from tiny_folder import tiny_folder, tiny_tokenizer
from tiny_recipe import TOML
from tiny_sleeper import disturbed, recipe_of, tiny_run

from reverie.errors import UserError
from reverie.files import file_hash
from reverie.hf.convert import convert
from reverie.hf.frozen import _read, _write
from reverie.hf.models.hybrid import save_hybrid
from reverie.memory.file import read_info
from reverie.memory.history import History
from reverie.memory.memory import Memory, sleep_over
from reverie.memory.store import MemoryStore
from reverie.model import new_model
from reverie.recipe import load_recipe, recipe_again
from reverie.recipe.random_passes import RandomPasses
from reverie.results.card import read_card, save_card
from reverie.results.checkpoint import FILE_NAME, LIST_NAME, Checkpoint, Progress, checkpoint_metadata, load_checkpoint
from reverie.results.passes.card import PassesCard
from reverie.results.passes.figure import draw_passes
from reverie.results.plots import KINDS, figure
from reverie.results.run import load_run
from reverie.sleep import SleepConfig
from reverie.talk.answer import ask
from reverie.talk.reading import read_file
from reverie.talk.sleeper import load_model
from reverie.tasks import question_file, text_files
from reverie.tasks.data import ProblemRows, write_data
from reverie.tasks.gsm_infinite import ProblemConfig
from reverie.tasks.gsm_infinite.check import check_problems
from reverie.train.checkpoint import restore, save_checkpoint
from reverie.train.data import make_batch
from reverie.train.optim import build_optimizers
from reverie.train.schedule import Schedule
from reverie.train.step import take_step

OLD = Path(__file__).parent / "old"


class Kind(NamedTuple):
    """Files of one kind."""

    tries: int
    make: Callable[[Path], Any]  # writes them into a folder
    use: Callable[[Path], Any]  # what they mean; raises UserError
    damage: dict[str, tuple[Change, ...]]  # by the end of a file's name; others are left alone
    exact: tuple[str, ...] = ()  # ends of names of files which must mean what they meant


# Checkpoints


def make_run(folder: Path) -> None:
    recipe = recipe_of("rule110")
    model = disturbed(new_model(recipe.hybrid, 0), 0)
    optimizers = build_optimizers(model, recipe.optim)
    take_step(Schedule.of(recipe), model, optimizers, 0, make_batch(recipe.task, recipe.train, 0))
    save_checkpoint(folder / FILE_NAME, recipe, model, optimizers, Progress(step=1, tokens=1, loss_count=1))


def resumed(checkpoint: Checkpoint) -> Any:
    model = new_model(checkpoint.recipe.hybrid, checkpoint.recipe.train.seed)
    restore(checkpoint, model, build_optimizers(model, checkpoint.recipe.optim))
    return checkpoint.recipe, checkpoint.progress, [x.detach() for x in model.parameters()]


def make_sharded(folder: Path) -> None:
    """As today's version writes it, of what an earlier one did."""
    shutil.copytree(OLD / "sharded_run", folder, dirs_exist_ok=True)
    [place] = folder.glob("checkpoint-*")
    checkpoint, told = load_checkpoint(place), load_file(place / LIST_NAME)
    shards = {path.name: [path.stat().st_size, file_hash(path)] for path in sorted(place.glob("shard-*"))}
    metadata = checkpoint_metadata(checkpoint.recipe, checkpoint.progress, told, shards=json.dumps(shards))
    save_file(told, place / LIST_NAME, metadata=metadata)


def use_run(folder: Path) -> Any:
    return resumed(load_run(folder))


# Memories


def make_memory(**sleep: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        sleeper = load_model(tiny_run(folder / "run", "rule110", **sleep))
        memory = sleep_over(sleeper, [torch.arange(20) % 4], history=History())
        dataclasses.replace(memory, notes={"source": "book.txt"}).save(folder / "memory.safetensors")

    return make


def use_memory(folder: Path) -> Any:
    memory = Memory.load(folder / "memory.safetensors", load_model(folder / "run"))
    assert read_info(folder / "memory.safetensors").notes == memory.notes
    state, history = memory.context.state, memory.history
    return state, memory.tokens, memory.passes, memory.config, memory.notes, history and history.windows


def use_store(folder: Path) -> Any:
    """Of a store, damaged files are listed as such."""
    for entry in MemoryStore(folder).list():
        assert (entry.info is None) == (entry.problem is not None)
        assert "\n" not in (entry.problem or "")


# Recipes and cards


def use_recipe(folder: Path) -> None:
    recipe = load_recipe(folder / "tiny.toml")
    assert recipe_again(recipe.model_dump_json()) == recipe


def make_cards(folder: Path) -> None:
    points = curve("sleep", 2, 0, [1, 2], 2, 0.2)
    save_card(run_card("sleep", 2, 0, points[-1].score, curve=points), folder / "run.json")
    save_card(comparison(seeds=1, depths=(1, 2), points=2), folder / "comparison.json")
    trained: list[int | RandomPasses] = [2, RandomPasses(mean=2, max=4, distribution="uniform")]
    save_card(passes_card(trained, seeds=1, numbers=(1, 2)), folder / "passes.json")


def use_cards(folder: Path) -> None:
    for path in sorted(folder.glob("*.json")):
        card = read_card(path, {name: kind for name, (kind, _) in KINDS.items()})
        assert repr(type(card).model_validate(card.model_dump())) == repr(card)  # NaN is not itself
        if path.read_bytes() != (folder / "whole" / path.name).read_bytes():
            drawing = draw_passes(card) if isinstance(card, PassesCard) else figure(card)  # type: ignore[arg-type]
            drawing.draw_without_rendering()


# Folders of models


def make_adapter(folder: Path) -> None:
    base = tiny_folder(folder / "base", hidden_size=16, intermediate_size=24, num_hidden_layers=2)
    convert(str(base), folder / "model", SleepConfig(window_size=8, num_sleep_passes=2), kind="gdn", layers=1)


def make_whole(folder: Path) -> None:
    make_adapter(folder)
    shutil.copytree(folder / "model", folder / "adapter")
    shutil.rmtree(folder / "model")
    model = load_model(folder / "adapter").sleeping.lm  # pyright: ignore[reportAttributeAccessIssue]
    model.origin = None
    model.save_pretrained(folder / "model", max_shard_size="16KB")
    tiny_tokenizer().save_pretrained(folder / "model")


def make_hybrid(folder: Path) -> None:
    recipe = recipe_of("rule110")
    config = recipe.hybrid.model_copy(update={"vocab_size": 61})
    save_hybrid(disturbed(new_model(config, 0), 0), folder / "model", recipe.sleep)  # type: ignore[arg-type]
    tiny_tokenizer().save_pretrained(folder / "model")


def use_model(folder: Path) -> Any:
    sleeper = load_model(folder / "model")
    memory = sleep_over(sleeper, [sleeper.text("It rains again. ")])
    ask(sleeper, memory, ["Why."], max_tokens=2)
    return [x.detach() for x in sleeper.sleeping.parameters()]  # pyright: ignore[reportAttributeAccessIssue]


# Data


def make_data(folder: Path) -> None:
    rows = [{"text": f"Ann {i} bakes. It rains.", "question": "What?", "answer": "bakes"} for i in range(8)]
    lines = "\n".join(map(json.dumps, rows))
    (folder / "questions.jsonl").write_text(lines, encoding="utf-8")
    (folder / "prose.txt").write_text("Ann bakes, and it rains in spring.\n" * 20, encoding="utf-8")
    np.save(folder / "tokens.npy", np.arange(400) % 50)
    (folder / "shard.bin").write_bytes((np.arange(400) % 50).astype(np.uint16).tobytes())
    write_data(ProblemRows(problems=ProblemConfig(), split="test", seed=3), 2, folder / "problems.jsonl")


def make_parquet(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"text": f"Ann {i} bakes. It rains.", "question": "What?", "answer": "bakes", "depth": 1} for i in range(8)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "questions.parquet")


def use_data(folder: Path) -> None:
    for cached in (question_file._read, question_file._texts, text_files._every, text_files._of_split):
        cached.cache_clear()
    sizes: Any = {"window_tokens": 16, "num_windows": 1, "held_out": 0.0}
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if path.name == "problems.jsonl":
            check_problems(path)
        elif path.suffix in (".jsonl", ".parquet"):
            question_file.QuestionFile(file=str(path), **sizes).pages("train", 0, 0, range(2))
        else:
            text_files.TextFiles(path=str(path), **sizes).pages("train", 0, 0, range(2))
        if path.suffix == ".txt":
            read_file(str(path))


# Cached windows


def make_cached(folder: Path) -> None:
    _write(folder / "states.safetensors", torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))


def use_cached(folder: Path) -> Any:
    if (states := _read(folder / "states.safetensors")) is None:
        raise UserError("it is made anew")
    return states.clone()  # it reads from the file that will be damaged


TENSORS = in_bytes, in_bytes, in_header
JSON = in_bytes, in_json, in_json, in_json
KINDS_OF_FILES = {
    "checkpoint": Kind(250, make_run, use_run, {".safetensors": TENSORS}, (".safetensors",)),
    "sharded": Kind(150, make_sharded, use_run, {".safetensors": TENSORS}, (".safetensors",)),
    "old checkpoint": Kind(
        100, lambda to: shutil.copytree(OLD / "run", to, dirs_exist_ok=True), use_run, {".safetensors": TENSORS}
    ),
    "old sharded": Kind(
        100, lambda to: shutil.copytree(OLD / "sharded_run", to, dirs_exist_ok=True), use_run, {".safetensors": TENSORS}
    ),
    "memory": Kind(200, make_memory(), use_memory, {"memory.safetensors": TENSORS}, (".safetensors",)),
    "sliding": Kind(
        100, make_memory(eviction="sliding"), use_memory, {"memory.safetensors": TENSORS}, (".safetensors",)
    ),
    "store": Kind(50, make_memory(), use_store, {"memory.safetensors": TENSORS}),
    "recipe": Kind(
        300,
        lambda to: (to / "tiny.toml").write_text(TOML),
        use_recipe,
        {".toml": (in_lines, in_lines, in_lines, in_bytes)},
    ),
    "cards": Kind(250, make_cards, use_cards, {".json": JSON}),
    "adapter": Kind(100, make_adapter, use_model, {"model.safetensors": TENSORS, ".json": JSON}, (".safetensors",)),
    "whole": Kind(100, make_whole, use_model, {".safetensors": TENSORS, ".json": JSON}, (".safetensors",)),
    "hybrid": Kind(50, make_hybrid, use_model, {".safetensors": TENSORS, ".json": JSON}, (".safetensors",)),
    "data": Kind(
        150,
        make_data,
        use_data,
        {".jsonl": (in_lines, in_lines, in_bytes), **dict.fromkeys((".txt", ".npy", ".bin"), (in_bytes,))},
    ),
    "parquet": Kind(50, make_parquet, use_data, {".parquet": (in_bytes,)}),
    "cached": Kind(50, make_cached, use_cached, {".safetensors": TENSORS}, (".safetensors",)),
}
