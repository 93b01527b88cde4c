"""Whose a memory is: another dtype or quantised weights only if that is asked for, and then it is recorded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from beartype import beartype
from jaxtyping import jaxtyped
from store_files import CONFIG, new_folder, refused
from torch import Tensor, nn

from reverie import Context, Memory, MemoryStore, SleepConfig, read, sleep_over
from reverie.errors import UserError
from reverie.memory import read_info
from reverie.memory.fingerprint import identify
from reverie.memory.function import function_of
from reverie.model import HybridLM

MakeModel = Callable[..., HybridLM]
QUESTION = torch.tensor([[1, 2, 3]])


class Quantised(nn.Module):
    """A linear layer whose weights are 8-bit integers."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().max() / 127
        self.register_buffer("scale", scale)
        self.register_buffer("codes", (linear.weight.detach() / scale).round().to(torch.int8))

    @property
    def weight(self) -> Tensor:
        codes: Any = self.codes
        return codes * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


def quantised(model: nn.Module) -> Any:
    twin: Any = copy.deepcopy(model)
    for part in [*twin.modules()]:
        for name, child in [*part.named_children()]:
            if isinstance(child, nn.Linear) and child.bias is None:
                setattr(part, name, Quantised(child))
    return twin


@pytest.fixture
def saved(model: HybridLM, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "m.safetensors"
    sleep_over(model, torch.randint(11, (1, 9)), CONFIG).save(path)
    return path


def logits(model: Any, memory: Memory) -> Tensor:
    with torch.no_grad():
        return read(model, QUESTION, memory.context, memory.config)[0].double()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_another_dtype_is_accepted_if_asked_for_and_recorded(dtype: torch.dtype, model: HybridLM, saved: Path):
    other, name = copy.deepcopy(model).to(dtype), str(dtype).removeprefix("torch.")
    told = f"{saved} is a memory of the model as it was with weights in float32, and those of the model are in {name}"
    assert refused(lambda: Memory.load(saved, other)).startswith(told)
    memory = Memory.load(saved, other, approximate=True)
    on_word = ", on the word of whoever loaded it" if dtype == torch.float16 else ""
    assert memory.accepted == (f"made with float32 and our kernels, accepted with {name} and our kernels{on_word}",)
    tolerance = 1e-4 if dtype == torch.float64 else 0.1
    wanted = logits(model, Memory.load(saved, model))
    torch.testing.assert_close(logits(other, memory), wanted, rtol=tolerance, atol=tolerance)
    memory.check(other)
    memory.save(saved)
    assert read_info(saved).accepted == [*memory.accepted]
    assert Memory.load(saved, other).accepted == memory.accepted
    assert sleep_over(other, torch.tensor([[1, 2]]), CONFIG, memory=memory).accepted == memory.accepted
    assert len(Memory.load(saved, model, approximate=True).accepted) == 2


def test_quantised_weights_too_on_the_caller_s_word(model: HybridLM, saved: Path):
    other = quantised(model)
    assert "those of the model are in float32, int8; approximate=True" in refused(lambda: Memory.load(saved, other))
    memory = Memory.load(saved, other, approximate=True)
    assert memory.accepted[0].endswith("accepted with float32, int8 and our kernels, on the word of whoever loaded it")
    assert (logits(other, memory) - logits(model, Memory.load(saved, model))).abs().max() < 1
    again = sleep_over(other, torch.tensor([[1, 2]]), CONFIG)
    assert again.made_with["dtype"] == "float32, int8"
    again.check(other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_another_model_is_refused_even_then(dtype: torch.dtype, model: HybridLM, saved: Path):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight[3, 2] *= 1.5
    other = other.to(dtype)
    for approximate in (False, True):
        sentence = refused(lambda approximate=approximate: Memory.load(saved, other, approximate=approximate))
        assert sentence == f"{saved} is a memory of another model: its fast weights mean nothing to this one"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_what_a_module_is_set_to_counts_beside_its_weights(dtype: torch.dtype, tiny_model: MakeModel, tmp_path: Path):
    model: Any = tiny_model("attn", "gdn", dtype=dtype)
    sleep_over(model, torch.tensor([[1, 2, 3]]), CONFIG).save(tmp_path / "m")
    model.layers[1].norm_eps = 0.5
    for approximate in (False, True):
        sentence = refused(lambda approximate=approximate: Memory.load(tmp_path / "m", model, approximate=approximate))
        assert sentence.endswith("of a model with the same weights, but other modules: it computes something else")


def test_between_versions_of_libraries_weights_and_config_decide(model: HybridLM, tmp_path: Path):
    """Whose modules may have other attributes for the same function."""
    memory = sleep_over(model, torch.tensor([[1, 2, 3]]), CONFIG)
    made_with = {**memory.made_with, "modules": "0" * 64, "libraries": "torch 1"}
    older = replace(memory, made_with=made_with)
    older.check(model)
    older.save(tmp_path / "m")
    assert Memory.load(tmp_path / "m", model).made_with == memory.made_with
    replace(memory, made_with={}).check(model)  # a file of an earlier version
    with pytest.raises(UserError, match="but other modules"):
        replace(memory, made_with={**made_with, "libraries": memory.made_with["libraries"]}).check(model)


def test_passes_and_windows_are_no_part_of_it(model: HybridLM):
    """They are compared through the config of sleep, where passes may differ."""
    memories = [
        sleep_over(model, torch.tensor([[1, 2, 3]]), SleepConfig(window_size=L, num_sleep_passes=N))
        for L, N in ((2, 1), (2, 3), (3, 1))
    ]
    assert len({memory.fingerprint for memory in memories}) == 1
    assert len({memory.made_with["modules"] for memory in memories}) == 1


def test_a_store_s_get_accepts_it_too(model: HybridLM, saved: Path):
    store, other = MemoryStore(new_folder()), copy.deepcopy(model).double()
    store.put("a", Memory.load(saved, model))
    with pytest.raises(UserError, match="approximate=True"):
        store.get("a", other)
    store.put("a", store.get("a", other, approximate=True))
    assert [entry.info.accepted for entry in store.list() if entry.info] == [[*store.get("a", other).accepted]]


def test_weights_that_are_not_in_memory_are_refused(model: HybridLM):
    with pytest.raises(UserError, match="some weights of the model are not in memory"):
        identify(copy.deepcopy(model).to("meta"))


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_model_that_drops_at_random_does_not_sleep(rate: float, tiny_model: MakeModel):
    model: Any = tiny_model("attn", "gdn")
    model.layers[0].extra = nn.Dropout(rate)
    if rate:
        with pytest.raises(UserError, match=r"in training mode, in which layers.0.extra .*: call model.eval\(\)"):
            sleep_over(model, torch.tensor([[1, 2, 3]]), CONFIG)
        model.eval()
    assert sleep_over(model, torch.tensor([[1, 2, 3]]), CONFIG).tokens.tolist() == [3]
    assert read(model, QUESTION, Context.empty(model), CONFIG)[0].shape[1] == 3


def test_a_function_is_the_same_whether_its_types_are_checked() -> None:
    """Which one process of two may do; what else takes a function's name is told apart."""

    def digest(function: Any) -> dict[str, str]:
        layer: Any = nn.Linear(2, 2)
        layer.activation = partial(function, by=2)
        return function_of(layer)

    library: Any = ModuleType("library_of_functions")
    exec("def scaled(x, by): return by * x", vars(library))
    scaled = library.scaled
    assert digest(jaxtyped(scaled, typechecker=beartype)) == digest(scaled)
    assert digest(wraps(scaled)(lambda x, by: 2 * scaled(x, by))) != digest(scaled)
