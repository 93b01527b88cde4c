"""A token awake: a rule on a single token without gradients is the specification, and changes nothing it was given."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from random_inputs import RULES, call, random_inputs


@pytest.mark.parametrize(("rule", "state", "read"), [*product(RULES, [True, False], [True, False])])
def test_the_specification_in_values(rule: str, state: bool, read: bool):
    inputs = random_inputs(1, state=state)
    inputs = inputs if read else inputs._replace(q=None)
    before = None if inputs.initial_state is None else inputs.initial_state.clone()
    wanted = call(RULES[rule], inputs, backend="reference")
    with torch.no_grad():
        got = call(RULES[rule], inputs, backend="chunked")
    for mine, other in zip(got, wanted, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
    if before is not None:
        assert inputs.initial_state is not None
        assert torch.equal(before, inputs.initial_state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_memory_stays_in_float32(dtype: torch.dtype):
    inputs = random_inputs(1, dtype=dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        o, S = call(RULES["gated_delta"], inputs, backend="chunked")
    wanted, end = call(RULES["gated_delta"], inputs, backend="reference")
    assert (o.dtype, S.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(S, end)
    torch.testing.assert_close(o, wanted)


def test_with_gradients_it_is_the_general_path():
    leaf = random_inputs(1)
    leaf.v.requires_grad_()
    o, S = call(RULES["delta"], leaf, backend="chunked")
    assert o.requires_grad
    assert S.requires_grad
