"""Memories of models of transformers: read once, saved, branched, and answered from by `generate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sleeping_models import OWN, L, asleep, sleeping
from tiny import text
from torch import Tensor

from reverie.errors import UserError
from reverie.hf.cache import cache_of
from reverie.hf.state import LayerCache
from reverie.memory.memory import Memory, sleep_over
from reverie.sleep import Context, read

pytestmark = pytest.mark.hf

KINDS = ["llama", "qwen3_next", "bamba", OWN]
each_kind = pytest.mark.parametrize("kind", KINDS)
both_evictions = pytest.mark.parametrize("eviction", ["hard", "sliding"])


def make(kind: str, eviction: str = "hard", seed: int = 0) -> Any:
    model = sleeping(kind, asleep(2, eviction), seed=seed).eval()
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def write(model: Any, x: Tensor, past: Any, new: int = 2 * L, **kwargs: Any) -> Tensor:
    """The new tokens, greedily."""
    kwargs = {"do_sample": False, "attention_mask": torch.ones_like(x)} | kwargs
    return model.generate(x, max_new_tokens=new, past_key_values=past, **kwargs)[:, x.shape[1] :]


@each_kind
@both_evictions
def test_a_memory_is_what_the_model_had_read(kind: str, eviction: str) -> None:
    """Behind whole windows, the question's logits are those of the text at once."""
    model, book, question = make(kind, eviction), text(3 * L), text(5, seed=2)
    memory = sleep_over(model, book)
    whole = model(torch.cat([book, question], dim=1)).logits[:, 3 * L :]
    torch.testing.assert_close(model(question, past_key_values=cache_of(memory)).logits, whole)
    torch.testing.assert_close(read(model.sleeping, question, memory.context, memory.config)[0], whole)
    assert memory.config == model.sleep_config


@each_kind
def test_generate_answers_from_it(kind: str) -> None:
    """Over several windows, and again from the same memory."""
    model, book, question = make(kind), text(3 * L), text(5, seed=2)
    memory = sleep_over(model, book)
    wanted = write(model, torch.cat([book, question], dim=1), None)
    assert torch.equal(write(model, question, cache_of(memory)), wanted)
    assert torch.equal(write(model, question, cache_of(memory)), wanted)
    assert not torch.equal(model(question).logits, model(question, past_key_values=cache_of(memory)).logits)


@each_kind
@both_evictions
def test_saved_and_loaded_it_answers_alike(kind: str, eviction: str, tmp_path: Path) -> None:
    """To the last bit, in a model made afresh; sliding windows keep their entries."""
    model, question = make(kind, eviction), text(5, seed=2)
    memory = sleep_over(model, text(3 * L - 3))
    memory.save(tmp_path / "memory.safetensors")
    again = make(kind, eviction)
    loaded = Memory.load(tmp_path / "memory.safetensors", again)
    answers = [m(question, past_key_values=cache_of(known)).logits for m, known in ((model, memory), (again, loaded))]
    assert torch.equal(*answers)
    entries = [entry for entry in loaded.context.state.cache if entry is not None]
    assert bool(entries) == (eviction == "sliding")
    assert kind == OWN or all(isinstance(entry, LayerCache) for entry in entries)


@each_kind
def test_branches_answer_as_the_memory_does(kind: str) -> None:
    """Several questions about one text as one batch, with padding in front of the shorter ones."""
    model, book = make(kind), text(2 * L, batch=1)
    memory = sleep_over(model, book)
    questions = [text(size, batch=1, seed=size) for size in (3, 5, 4)]
    width = max(question.shape[1] for question in questions)
    padded = torch.cat([torch.nn.functional.pad(q, (width - q.shape[1], 0)) for q in questions])
    cache = cache_of(memory.branch(3))
    together = write(model, padded, cache, new=L, attention_mask=(padded != 0).long())
    for row, question in zip(together, questions, strict=True):
        assert torch.equal(row[None], write(model, question, cache_of(memory), new=L))
    assert torch.equal(*(model(questions[0], past_key_values=cache_of(m)).logits for m in (memory, memory.branch(1))))


@each_kind
def test_the_memory_stays_as_it_is(kind: str) -> None:
    model = make(kind)
    memory = sleep_over(model, text(2 * L))
    before = [x.clone() for x in memory.context.state.fast_weights if x is not None]
    cache = cache_of(memory)
    write(model, text(5, seed=2), cache)
    assert cache.seen == 5 + 2 * L - 1
    after = [x for x in memory.context.state.fast_weights if x is not None]
    assert before
    assert all(map(torch.equal, before, after))


def test_turns_go_on_from_it() -> None:
    """The cache behind the first answer takes the next question, as any cache does."""
    model = make("llama")
    memory, question = sleep_over(model, text(2 * L)), text(3, seed=2)
    cache = cache_of(memory)
    first = write(model, question, cache, 4)
    turns = torch.cat([question, first, text(3, seed=3)], dim=1)
    second = write(model, turns, cache, 4)
    assert torch.equal(second, write(model, turns, cache_of(memory), 4))


@each_kind
def test_it_is_of_one_model(kind: str, tmp_path: Path) -> None:
    model, path = make(kind), tmp_path / "memory.safetensors"
    sleep_over(model, text(L)).save(path)
    with pytest.raises(UserError, match="is a memory of another model"):
        Memory.load(path, make(kind, seed=1))
    assert Memory.load(path, model.sleeping).batch_size == 2  # whatever is around it


def test_rows_of_question_and_memory() -> None:
    model = make("llama")
    memory = sleep_over(model, text(L))
    with pytest.raises(UserError, match="the memory holds 2 texts, but these are tokens of 3: branch it"):
        model(text(3, batch=3), past_key_values=cache_of(memory))


def test_the_part_that_sleeps_is_always_the_same() -> None:
    """So that weights are hashed once; it is no module of the model, which would be saved twice."""
    model = make("llama")
    names = list(model.state_dict())
    assert model.sleeping is model.sleeping
    assert list(model.state_dict()) == names
    changed = replace(sleep_over(model, text(L)), context=Context.empty(model.sleeping))
    assert changed.fingerprint == sleep_over(model, text(3)).fingerprint


@pytest.mark.parametrize("kind", ["llama", OWN])
def test_a_memory_in_front_of_another_model_is_refused(kind: str) -> None:
    memory = sleep_over(make(kind), text(1, 2 * L))
    with pytest.raises(UserError, match="the memory is of another model"):
        make(kind, seed=1).generate(text(1, 3), past_key_values=cache_of(memory), max_new_tokens=1)
    with pytest.raises(UserError, match="was made with eviction hard"):
        make(kind, "sliding").generate(text(1, 3), past_key_values=cache_of(memory), max_new_tokens=1)
