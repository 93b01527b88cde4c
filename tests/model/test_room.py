"""`append`: the same as torch.cat whoever goes on from what, and no token is copied twice."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reverie.model import room
from reverie.model.room import append


@pytest.fixture(scope="module", autouse=True)
def however_small() -> Iterator[None]:
    """Tensors of these tests get a room; ordinarily such small ones are copied."""
    with mock.patch.object(room, "_SMALL", 0):
        yield


@given(st.data())
def test_the_same_as_cat_in_any_tree_of_branches(data: st.DataObject):
    """Each step goes on from any tensor so far; at the end all of them are what torch.cat would have made them."""
    dim, window = data.draw(st.sampled_from([1, 2])), data.draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(0)

    def new(n: int) -> Tensor:
        return torch.randn((2, n, 3) if dim == 1 else (2, 3, n), generator=generator)

    first = new(1)
    pairs = [(first, first.clone())]
    for _ in range(data.draw(st.integers(1, 12))):
        before, wanted = pairs[data.draw(st.integers(0, len(pairs) - 1))]
        more = new(data.draw(st.integers(1, 3)))
        if data.draw(st.integers(0, 9)) == 0:
            before = data.draw(st.sampled_from([copy.deepcopy(before), before.clone(), before[:1].expand_as(before)]))
            wanted = before.clone()
        inference = data.draw(st.booleans())
        small = mock.patch.object(room, "_SMALL", data.draw(st.sampled_from([0, 2**19])))
        with small, torch.inference_mode() if inference else torch.no_grad():
            pairs.append((append(before, more, dim, window), torch.cat([wanted, more], dim)))
    for got, wanted in pairs:
        assert torch.equal(got, wanted)


@torch.no_grad()
def test_a_window_token_by_token_is_copied_a_few_times_at_most():
    k, places = torch.randn(1, 1, 4), set[int]()
    for _ in range(499):
        k = append(k, torch.randn(1, 1, 4), 1, 500)
        places.add(k.data_ptr())
    assert k.shape[1] == 500
    assert len(places) <= 5
    assert k.untyped_storage().nbytes() == 500 * 4 * 4  # no more than the window


def test_gradients_flow_and_what_autograd_kept_stays_valid():
    with torch.no_grad():
        k = append(torch.randn(1, 3, 4), torch.randn(1, 1, 4), 1, 50)
    weight = torch.randn(1, 4, 4, requires_grad=True)
    loss = (weight * k).sum()  # keeps k
    with torch.no_grad():
        append(k, torch.randn(1, 1, 4), 1, 50)
    loss.backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, k)
    new = torch.randn(1, 1, 4, requires_grad=True)
    append(k, new, 1, 50).sum().backward()
    assert new.grad is not None


@torch.no_grad()
def test_threads_that_go_on_from_one_tensor_do_not_meet():
    begin = append(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), 1, 500)
    ends: dict[int, Tensor] = {}

    def go_on(own: int) -> None:
        with torch.no_grad():
            k = begin
            for _ in range(200):
                k = append(k, torch.full((1, 1, 2), float(own)), 1, 500)
            ends[own] = k

    threads = [threading.Thread(target=go_on, args=(own,)) for own in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own, k in ends.items():
        assert torch.equal(k[:, 2:], torch.full((1, 200, 2), float(own)))


@torch.no_grad()
@pytest.mark.parametrize("cached", [torch.bfloat16, torch.float64])
def test_what_was_cached_takes_the_type_of_what_comes(cached: torch.dtype):
    k = append(torch.ones(1, 1, 2, dtype=cached), torch.zeros(1, 1, 2), 1, 9)
    assert k.dtype == torch.float32
    assert torch.equal(k, torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]))


@torch.no_grad()
def test_other_rows_are_refused_as_by_cat():
    k = append(torch.zeros(3, 1, 2), torch.zeros(3, 1, 2), 1, 9)
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        append(k, torch.zeros(1, 1, 2), 1, 9)
