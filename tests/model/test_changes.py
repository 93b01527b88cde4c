"""Every edit of a tensor changes its checksum, and every edit that torch knows of is seen by a `Look`."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reverie.memory import fingerprint as module
from reverie.memory.fingerprint import fingerprint, mark_of
from reverie.model import HybridLM
from reverie.model.changes import Look, checksum

BLOCK = 64 * 2048 * 8  # bytes
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool]
SIZES = [1, 7, 8, 9, 2**14 - 1, 2**14 + 3, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 12_345]


def numbers(size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-100, 100, (size,), generator=generator).to(dtype)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.sampled_from(SIZES), dtype=st.sampled_from(DTYPES))
def test_one_element_two_exchanged_and_a_shift_are_seen(data: st.DataObject, size: int, dtype: torch.dtype):
    x = numbers(size, dtype)
    before, i, j = checksum([x]), data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1))
    assert checksum([x.clone()]) == before
    edited = x.clone()
    edited[i] = not edited[i] if dtype == torch.bool else edited[i] + 1
    exchanged = x.clone()
    exchanged[i], exchanged[j] = x[j], x[i]
    for other in (edited, exchanged, x.roll(1)):
        assert (checksum([other]) == before) == torch.equal(other, x)


def test_rows_that_are_exchanged_are_seen():
    x = numbers(4 * BLOCK, torch.int8).view(4 * 64, -1)
    for i, j in ((0, 1), (0, 64), (63, 64), (3, 255)):
        other = x.clone()
        other[i], other[j] = x[j], x[i]
        assert checksum([other]) != checksum([x])


def test_shape_dtype_and_order_count_and_strides_do_not():
    x, y = numbers(4096, torch.float32), numbers(4096, torch.float32, seed=1)
    different = [[x], [x.view(64, 64)], [x.view(torch.int32)], [x, y], [y, x], [torch.cat([x, y])]]
    assert len({checksum(one) for one in different}) == len(different)
    square = x.view(64, 64)
    assert checksum([square.T.contiguous().T]) == checksum([square]) != checksum([square.T])
    assert checksum([torch.cat([y[:1], x])[1:]]) == checksum([x])  # at an odd address
    assert checksum([x[:0]]) != checksum([x[:1]])


def _edit_an_equal_parameter(model: Any) -> None:
    model[2].one = nn.Parameter(model[2].one.clone())
    assert Look(model).holds()
    model[2].one.mul_(2)


def _edit_an_equal_dict(model: Any) -> None:
    model[2].scales = {"a": {"b": 1.0}}
    model[2].scales["a"]["c"] = 1.0


EDITS: dict[str, Any] = {
    "in place": lambda m: m[0].weight.mul_(2),
    "data of another shape": lambda m: setattr(m[0].weight, "data", m[0].weight.data.T),
    "moved within its storage": lambda m: setattr(m[0].weight, "data", m[0].weight.data.flip(0)),
    "another parameter": lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight.clone())),
    "no bias": lambda m: setattr(m[0], "bias", None),
    "a module": lambda m: m.__setitem__(1, nn.ReLU()),
    "a module more": lambda m: m.append(nn.ReLU()),
    "a buffer": lambda m: m.register_buffer("more", torch.zeros(1), persistent=False),
    "a plain tensor": lambda m: setattr(m[0], "plain", torch.zeros(1)),
    "a setting": lambda m: setattr(m[1], "approximate", "tanh"),
    "an equal parameter, edited": _edit_an_equal_parameter,
    "an equal dict, edited": _edit_an_equal_dict,
    "in a list": lambda m: m[2].names.append("x"),
    "in a dict in a dict": lambda m: m[2].scales["a"].update(b=2.0),
    "a hook": lambda m: m[0].register_forward_hook(print),
    "a hook before": lambda m: m[0].register_forward_pre_hook(print),
}


@pytest.fixture
def model() -> Any:
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Identity())
    model[2].names, model[2].scales = [], {"a": {"b": 1.0}}
    model[2].one = nn.Parameter(torch.ones(1))
    return model


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_look_holds_until_an_edit(model: Any, edit: Any):
    look = Look(model)
    model(torch.zeros(1, 4))
    assert look.holds()
    with torch.no_grad():
        edit(model)
    assert not look.holds()
    assert Look(model).holds()


def test_another_storage_at_the_same_address_is_seen(model: Any):
    """Memory that was given back is handed out again."""
    look, weight = Look(model), model[0].weight
    place = weight.data_ptr()
    weight.data = torch.empty(0)
    again = [x for x in (torch.zeros(4, 4) for _ in range(100)) if x.data_ptr() == place]
    weight.data = again[0] if again else torch.zeros(4, 4)
    assert not look.holds()


def test_a_storage_that_was_emptied_is_not_taken_for_another():
    """As where weights are offloaded: the old tensor is kept, and its memory is handed out again."""
    layer = torch.nn.Linear(64, 64, bias=False)
    look, kept = Look(layer), layer.weight.data
    place = kept.data_ptr()
    kept.untyped_storage().resize_(0)
    again = torch.ones(64, 64)
    layer.weight.data = again
    assert not look.holds(), again.data_ptr() == place


def test_the_same_storage_in_another_shape_is_seen(model: Any):
    for changed in (lambda x: x.T, lambda x: x[:3], lambda x: x.view(2, 8), lambda x: x[1:]):
        look, weight = Look(model), model[0].weight
        before = weight.data
        weight.data = changed(before)
        assert not look.holds()
        weight.data = before
        assert look.holds()


def test_a_look_keeps_no_weights_in_memory(model: Any):
    look = Look(model)
    gone = weakref.ref(model[0].weight.untyped_storage())
    model[0].weight.data = torch.zeros(4, 4)
    gc.collect()
    assert gone() is None
    assert not look.holds()


def test_a_model_that_is_known_is_copied_pickled_and_freed_as_any_other(tiny_model: Callable[..., HybridLM]):
    model = tiny_model("attn", "gdn")
    first, mark = fingerprint(model), mark_of(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert fingerprint(twin) == first
        assert mark_of(twin) != mark
    assert mark_of(model) is mark
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_what_is_moved_is_not_hashed_again(tiny_model: Callable[..., HybridLM], monkeypatch: pytest.MonkeyPatch):
    model, calls, whole = tiny_model("attn", "gdn"), [], module.content_hash
    monkeypatch.setattr(module, "content_hash", lambda *args: calls.append(1) or whole(*args))
    first = fingerprint(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    assert fingerprint(model, anew=True) == fingerprint(model) == first
    assert len(calls) == 1
