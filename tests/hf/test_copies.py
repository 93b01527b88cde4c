"""Models that sleep, through pickle, torch.save, deepcopy and into other processes: the same, and apart."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sleeping_models import HYBRIDS, OWN, TRANSFORMERS, L, asleep, sleeping
from tiny import text
from torch.multiprocessing import get_context

from reverie import sleep_over
from reverie.hf import load
from reverie.model import fast_weight_change

pytestmark = [pytest.mark.hf, pytest.mark.slow]


def through_torch(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_pickle(model: Any, protocol: int = pickle.DEFAULT_PROTOCOL) -> Any:
    return pickle.loads(pickle.dumps(model, protocol))


def through_saving(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    return through_pickle(load(folder, experts_implementation="eager"))


WAYS: list[Callable[[Any], Any]] = [through_pickle, through_torch, copy.deepcopy, copy.copy]
QUICK = {"llama", "qwen3_next", OWN}
KINDS = [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in (*HYBRIDS, *TRANSFORMERS, OWN)]


def assert_same(other: Any, model: Any) -> None:
    tokens = text(2 * L + 3)
    assert type(other) is type(model)
    assert other.sleep_config == model.sleep_config
    assert torch.equal(other(tokens).logits, model(tokens).logits)
    memories = [sleep_over(one, tokens) for one in (other, model)]
    assert memories[0].fingerprint == memories[1].fingerprint
    changes = fast_weight_change(*(memory.context.state for memory in memories))
    assert changes
    assert all(bool((change == 0).all()) for change in changes.values())


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_the_same_model(kind: str, way: Callable[[Any], Any]) -> None:
    model = sleeping(kind, asleep(2, loop=(1, 3)))
    assert model.sleeping is not None
    other = way(model)
    assert_same(other, model)
    if way is not copy.copy:
        before = model(text(L)).logits
        for parameter in other.parameters():
            parameter.zero_()
        assert torch.equal(model(text(L)).logits, before)
        assert torch.equal(other.sleeping.head(other.sleeping.embed(text(L))), torch.zeros_like(before))


@torch.no_grad()
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol(protocol: int) -> None:
    model = sleeping("llama", asleep(2))
    assert_same(through_pickle(model, protocol), model)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "bamba"])
def test_a_loaded_model(kind: str, tmp_path: Path) -> None:
    model = sleeping(kind, asleep(2))
    assert_same(through_saving(model, tmp_path), model)


@torch.no_grad()
def test_peft() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(sleeping("llama", asleep(2)), peft.LoraConfig(target_modules=["q_proj"]))
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    for way in (through_pickle, through_torch, copy.deepcopy):
        assert torch.equal(way(model)(input_ids=text(2 * L)).logits, model(input_ids=text(2 * L)).logits)


@torch.no_grad()
def test_a_compiled_model_is_copied_as_it_was_before() -> None:
    model, tokens = sleeping("llama", asleep(2), dtype=torch.float32), text(2 * L)
    wanted = model(tokens).logits
    model.sleeping.compile_blocks("eager")
    for way in (through_pickle, copy.deepcopy):
        other = way(model)
        assert all(block.attend is None for block in other.model.layers)
        assert torch.equal(other(tokens).logits, wanted)
    assert all(block.attend is not None for block in model.model.layers)


@torch.no_grad()
def _answer(model: Any, tokens: torch.Tensor, answers: Any) -> None:
    answers.put(model(tokens).logits.numpy())


@pytest.mark.slow
def test_a_process_that_is_spawned() -> None:
    context, model = get_context("spawn"), sleeping("llama", asleep(2))
    answers = context.SimpleQueue()
    process = context.Process(target=_answer, args=(model, text(2 * L), answers))
    process.start()
    found = torch.from_numpy(answers.get())
    process.join()
    with torch.no_grad():
        assert torch.equal(found, model(text(2 * L)).logits)
