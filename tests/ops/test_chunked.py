"""The parallel form is the reference: values, gradients, precision."""

from __future__ import annotations

import pytest
import torch
from random_inputs import RULES, Inputs, Rule, assert_same, call, outcome, random_inputs
from torch import Tensor

from reverie.ops import gated_delta_rule

each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def compare(rule: Rule, inputs: Inputs, tolerance: float, **options: int | None) -> None:
    wanted = outcome(rule, inputs, backend="reference")
    assert_same(outcome(rule, inputs, backend="chunked", **options), wanted, tolerance)


@each_rule
@pytest.mark.parametrize("state", [False, True], ids=["from zero", "from a state"])
@pytest.mark.parametrize("T", [1, 2, 7, 64, 65, 130])
def test_values_and_gradients(rule: Rule, T: int, state: bool) -> None:
    """For chunks of any size: one token, sizes that do not divide T, the default, larger than T."""
    inputs = random_inputs(T, state=state)
    wanted = outcome(rule, inputs, backend="reference")
    for chunk_size in (1, 3, 16, None, 200):
        assert_same(outcome(rule, inputs, backend="chunked", chunk_size=chunk_size), wanted, 1e-9)


@each_rule
@pytest.mark.parametrize("T", [7, 130])
def test_float32(rule: Rule, T: int) -> None:
    compare(rule, random_inputs(T, dtype=torch.float32), 2e-4)


@each_rule
@pytest.mark.parametrize(("K", "V"), [(1, 1), (5, 3), (3, 5)])
def test_any_shape_of_the_memory(rule: Rule, K: int, V: int) -> None:
    compare(rule, random_inputs(10, B=1, H=3, K=K, V=V), 1e-9, chunk_size=4)


@each_rule
def test_bfloat16_inputs(rule: Rule) -> None:
    """q, k, v in bfloat16: the memory stays float32 and exact, only o is rounded."""
    inputs = random_inputs(70, K=4, dtype=torch.float32)
    rounded = inputs._replace(q=inputs.q.bfloat16(), k=inputs.k.bfloat16(), v=inputs.v.bfloat16())
    exact = inputs._replace(q=rounded.q.float(), k=rounded.k.float(), v=rounded.v.float())
    o, S = call(rule, rounded)
    wanted_o, wanted_S = call(rule, exact, backend="reference")
    assert (o.dtype, S.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(S, wanted_S, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(o.float(), wanted_o, rtol=2**-7, atol=2**-9)


@each_rule
@pytest.mark.parametrize("share", [0.3, 1.0], ids=["some", "all"])
def test_strong_decay(rule: Rule, share: float) -> None:
    """g = −20, alone or among tiny decays: finite, and as exact as the reference."""
    inputs = random_inputs(130, dtype=torch.float32)
    strong = torch.rand(inputs.g.shape, generator=torch.Generator().manual_seed(0)) < share
    inputs = inputs._replace(g=torch.where(strong, -20.0, 1e-3 * inputs.g))
    got = outcome(rule, inputs, backend="chunked")
    for name, x in got.items():
        assert x is None or x.isfinite().all(), name
    assert_same(got, outcome(rule, inputs, backend="reference"), 1e-3)


def test_small_decays_survive_after_strong_ones() -> None:
    """Differences of long sums of g would lose them in float32."""
    inputs = random_inputs(64, dtype=torch.float32)
    g = torch.full(inputs.g.shape, -1e-3)
    g[:, :48] = -20.3
    double = [None if x is None else x.double() for x in inputs._replace(g=g)]
    _, wanted = call(gated_delta_rule, Inputs(*double), backend="reference")  # pyright: ignore[reportArgumentType]
    _, S = call(gated_delta_rule, inputs._replace(g=g))
    torch.testing.assert_close(S.double(), wanted, rtol=0, atol=1e-6)


@each_rule
@pytest.mark.parametrize("beta", [0.0, 1e-6, 1 - 1e-6, 1.0])
def test_step_sizes_at_the_ends(rule: Rule, beta: float) -> None:
    inputs = random_inputs(70)
    compare(rule, inputs._replace(beta=torch.full_like(inputs.beta, beta)), 1e-9)


@each_rule
def test_one_key_again_and_again(rule: Rule) -> None:
    """The hardest triangular system: all k equal, β = 1."""
    inputs = random_inputs(70)
    k, beta = inputs.k[:, :1].expand_as(inputs.k), torch.ones_like(inputs.beta)
    compare(rule, inputs._replace(k=k, beta=beta), 1e-9)


@each_rule
def test_gradients_of_two_chained_calls(rule: Rule) -> None:
    """gradcheck in float64: the second call starts from the state of the first."""
    inputs = random_inputs(5, B=1, H=1, K=2, V=2)

    def chained(*leaves: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        whole = Inputs(*leaves)
        o_1, S = call(rule, whole.cut(0, 3)._replace(initial_state=whole.initial_state), chunk_size=2)
        o_2, S = call(rule, whole.cut(3, 5)._replace(initial_state=S), chunk_size=2)
        return o_1, S, o_2

    assert torch.autograd.gradcheck(chained, [x.requires_grad_() for x in inputs])
