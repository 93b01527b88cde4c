"""What each update rule means, on every backend that runs on CPU."""

from __future__ import annotations

import pytest
import torch
from random_inputs import RULES, Rule, call, random_inputs

from reverie.ops import delta_rule, gated_delta_rule, hebbian_rule

pytestmark = pytest.mark.parametrize("backend", ["reference", "chunked"])
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def test_hebbian_rule_is_a_decayed_sum_of_outer_products(backend: str) -> None:
    """S_T = e^{g_1 + … + g_T} S_0 + Σ_t e^{g_{t+1} + … + g_T} β_t k_t v_tᵀ, and o_T = K^-1/2 S_Tᵀ q_T."""
    T = 9
    inputs = random_inputs(T)
    q, k, v, g, beta, S_0 = inputs
    wanted = g.sum(1).exp()[..., None, None] * S_0
    for t in range(T):
        decay = g[:, t + 1 :].sum(1).exp() * beta[:, t]
        wanted = wanted + decay[..., None, None] * k[:, t, :, :, None] * v[:, t, :, None, :]
    o, S = call(hebbian_rule, inputs, backend=backend)
    torch.testing.assert_close(S, wanted)
    torch.testing.assert_close(o[:, -1], (wanted * q[:, -1, :, :, None]).sum(-2) / k.shape[-1] ** 0.5)


@pytest.mark.parametrize("rule", [delta_rule, gated_delta_rule])
def test_delta_rules_return_exactly_what_was_written(rule: Rule, backend: str) -> None:
    """After a write with β = 1 and a unit key, the memory returns v for k, whatever it held."""
    inputs = random_inputs(7)
    inputs = inputs._replace(q=inputs.k, beta=torch.ones_like(inputs.beta))
    o, _ = call(rule, inputs, backend=backend, scale=1.0)
    torch.testing.assert_close(o, inputs.v)


def test_delta_rule_keeps_what_orthogonal_keys_hold(backend: str) -> None:
    """Writes to other, orthogonal keys leave a memory alone."""
    inputs = random_inputs(3, B=1, H=1, K=3)
    inputs = inputs._replace(k=torch.eye(3, dtype=torch.float64)[None, :, None], beta=torch.ones_like(inputs.beta))
    _, S = call(delta_rule, inputs, backend=backend)
    torch.testing.assert_close(S[0, 0], inputs.v[0, :, 0])


def test_gated_delta_rule_is_the_formula_of_the_paper(backend: str) -> None:
    """S_t = α_t S_{t−1} (I − β_t k_t k_tᵀ) + β_t v_t k_tᵀ, S of size d_v × d_k."""
    T = 5
    inputs = random_inputs(T, B=1, H=1)
    S = inputs.initial_state[0, 0].T
    for t in range(T):
        alpha, beta, k, v = inputs.g[0, t, 0].exp(), inputs.beta[0, t, 0], inputs.k[0, t, 0], inputs.v[0, t, 0]
        S = alpha * S @ (torch.eye(len(k)) - beta * torch.outer(k, k)) + beta * torch.outer(v, k)
    _, got = call(gated_delta_rule, inputs, backend=backend)
    torch.testing.assert_close(got[0, 0].T, S)


def test_delta_rule_is_the_gated_one_without_decay_and_ignores_g(backend: str) -> None:
    inputs = random_inputs(6)
    still = call(gated_delta_rule, inputs._replace(g=torch.zeros_like(inputs.g)), backend=backend)
    for g in (None, inputs.g, torch.full_like(inputs.g, -20.0)):
        o, S = call(delta_rule, inputs._replace(g=g), backend=backend)
        torch.testing.assert_close((o, S), still)


@each_rule
def test_beta_zero_writes_nothing(rule: Rule, backend: str) -> None:
    inputs = random_inputs(6)
    inputs = inputs._replace(beta=torch.zeros_like(inputs.beta))
    _, S = call(rule, inputs, backend=backend)
    alpha = 1.0 if rule is delta_rule else inputs.g.sum(1).exp()[..., None, None]
    torch.testing.assert_close(S, alpha * inputs.initial_state)


@each_rule
def test_no_initial_state_is_a_memory_of_zeros(rule: Rule, backend: str) -> None:
    inputs = random_inputs(6)
    empty = call(rule, inputs._replace(initial_state=None), backend=backend)
    zeros = call(rule, inputs._replace(initial_state=torch.zeros_like(inputs.initial_state)), backend=backend)
    torch.testing.assert_close(empty, zeros)


@each_rule
def test_scale_multiplies_the_output_alone(rule: Rule, backend: str) -> None:
    """The default is K^-1/2."""
    inputs = random_inputs(6)
    o, S = call(rule, inputs, backend=backend)
    unscaled, same = call(rule, inputs, backend=backend, scale=1.0)
    torch.testing.assert_close(o, unscaled * inputs.k.shape[-1] ** -0.5)
    torch.testing.assert_close(S, same)


@each_rule
def test_without_q_the_state_is_the_same(rule: Rule, backend: str) -> None:
    inputs = random_inputs(70)
    _, with_q = call(rule, inputs, backend=backend)
    o, without = call(rule, inputs._replace(q=None), backend=backend)
    assert o is None
    torch.testing.assert_close(without, with_q, rtol=0, atol=0)


@each_rule
@pytest.mark.parametrize("cut", [1, 7, 64, 69])
def test_two_calls_through_the_state_are_one(rule: Rule, cut: int, backend: str) -> None:
    inputs = random_inputs(70)
    o, S = call(rule, inputs, backend=backend)
    o_1, S_1 = call(rule, inputs.cut(0, cut)._replace(initial_state=inputs.initial_state), backend=backend)
    o_2, S_2 = call(rule, inputs.cut(cut, 70)._replace(initial_state=S_1), backend=backend)
    torch.testing.assert_close(S_2, S)
    torch.testing.assert_close(torch.cat([o_1, o_2], 1), o)


@each_rule
def test_inputs_are_left_alone(rule: Rule, backend: str) -> None:
    inputs = random_inputs(6)
    before = [None if x is None else x.clone() for x in inputs]
    call(rule, inputs, backend=backend)
    torch.testing.assert_close(list(inputs), before, rtol=0, atol=0)
