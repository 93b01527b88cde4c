"""A token awake as a recorded graph: the general path, in tensors that are used again and again."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_compiled_awake import SIZES, L, assert_same, random_model, text, token_by_token
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from reverie.errors import UserError
from reverie.model.awake import Made
from reverie.model.recorded import Compute
from reverie.sleep import SleepConfig, read
from reverie.sleep.compiled import record_awake


def as_a_graph_does(compute: Compute) -> Compute:
    """What is computed again is written into the same tensors."""
    made = compute()

    def again() -> Made:
        tree_map(lambda held, x: held.copy_(x), made, compute())
        return made

    return again


@pytest.mark.parametrize(
    "given", [{}, {"value_embedding": True}, {"update_rule": "delta"}, {"layers": ("gdn", "gdn")}], ids=str
)
@pytest.mark.parametrize(("eviction", "N", "B"), [("hard", 1, 2), ("sliding", 3, 1)])
def test_a_replay_is_the_general_path(given: dict[str, Any], eviction: Any, N: int, B: int) -> None:
    model, config = random_model(**given).double(), SleepConfig(window_size=L, num_sleep_passes=N, eviction=eviction)
    wanted = token_by_token(model, text(B), config)
    record_awake(model, config, batch_size=B, record=as_a_graph_does)
    replayed, run = list[int](), model.awake[B]._run
    model.awake[B]._run = lambda *given: replayed.append(1) or run(*given)
    assert_same(token_by_token(model, text(B), config), wanted, 1e-9)
    assert len(replayed) == text().shape[1] - 3  # sleep comes before the others


@torch.no_grad()
def test_contexts_stay_what_they_are() -> None:
    model, config = random_model(), SleepConfig(window_size=70, num_sleep_passes=2)
    _, context = token_by_token(model, text(length=66), config)
    before = [x.clone() for x in tree_leaves(context) if isinstance(x, Tensor)]
    wanted = [read(model, torch.tensor([[i]]), context, config) for i in range(3)]
    record_awake(model, config, record=as_a_graph_does)
    got = [read(model, torch.tensor([[i]]), context, config) for i in range(3)]
    for mine, other in zip(got, wanted, strict=True):
        assert_same(mine, other, 1e-5)
    assert all(map(torch.equal, before, (x for x in tree_leaves(context) if isinstance(x, Tensor))))


@torch.no_grad()
def test_nothing_of_one_text_reaches_another() -> None:
    """Not even what is no number, in places that the other has not come to."""
    model, config = random_model(), SleepConfig(window_size=200)
    _, context = token_by_token(model, text(length=70), config)
    record_awake(model, config, record=as_a_graph_does)
    wrong = tuple(None if x is None else x * math.nan for x in context.state.fast_weights)
    context = context._replace(state=context.state._replace(fast_weights=wrong))
    diverged, _ = token_by_token(model, text(length=2), config, context)
    assert diverged.isnan().any()
    assert token_by_token(model, text(length=3), config)[0].isfinite().all()


@torch.no_grad()
def test_an_edited_model_is_not_replayed() -> None:
    model, config = random_model(), SleepConfig(window_size=L)
    record_awake(model, config, record=as_a_graph_does)
    model.lm_head.weight.mul_(2)
    with pytest.warns(UserWarning, match="has changed since"):
        got = token_by_token(model, text(), config)
    model.awake.clear()
    assert_same(got, token_by_token(model, text(), config), 0)


def test_a_model_that_is_on_no_gpu_is_refused() -> None:
    with pytest.raises(UserError, match="recorded on a GPU alone, and the model is on cpu"):
        record_awake(random_model(), SleepConfig(window_size=L))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("B", [1, 4])
def test_a_cuda_graph_is_the_general_path(dtype: torch.dtype, B: int) -> None:
    sizes = {**SIZES, "key_size": 16, "value_size": 16}
    model, config = random_model(**sizes).to("cuda", dtype), SleepConfig(window_size=100, num_sleep_passes=2)
    tokens = text(B, 230).cuda()
    wanted = token_by_token(model, tokens, config)
    record_awake(model, config, batch_size=B)
    assert_same(token_by_token(model, tokens, config), wanted, 1e-3 if dtype == torch.float32 else 0.3)
