"""What is counted is what a call does: operations, and bytes of tensors as they come and go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reverie.bench.count import LiveBytes, count_flops, tensor_bytes
from reverie.ops import gated_delta_rule

A, B = torch.randn(3, 5), torch.randn(5, 7)
STACK_A, STACK_B = torch.randn(2, 3, 5), torch.randn(2, 5, 7)


@pytest.mark.parametrize(
    ("call", "flops"),
    [
        (lambda: A @ B, 2 * 3 * 5 * 7),
        (lambda: F.linear(A, B.mT, torch.zeros(7)), 2 * 3 * 5 * 7),
        (lambda: torch.zeros(3, 7).addmm_(A, B), 2 * 3 * 5 * 7),
        (lambda: STACK_A @ STACK_B, 2 * 2 * 3 * 5 * 7),
        (lambda: torch.zeros(2, 3, 7).baddbmm_(STACK_A, STACK_B), 2 * 2 * 3 * 5 * 7),
        (lambda: (A @ B, STACK_A @ STACK_B), 6 * 3 * 5 * 7),
        (lambda: A + A.exp(), 0),
    ],
)
def test_products(call: Callable[[], object], flops: int) -> None:
    assert count_flops(call) == flops


def test_a_triangular_solve_is_half_a_product() -> None:
    L, right = torch.eye(6).expand(4, 6, 6), torch.randn(4, 6, 9)
    assert count_flops(lambda: torch.linalg.solve_triangular(L, right, upper=False)) == 4 * 6 * 6 * 9


def test_attention() -> None:
    """Two products forward; backward the scores once more, and two for each of them."""
    q, k, v = torch.randn(3, 2, 4, 10, 8, requires_grad=True).unbind()
    product = 2 * 2 * 4 * 10 * 10 * 8

    def forward() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    assert count_flops(forward) == 2 * product
    assert count_flops(lambda: forward().sum().backward()) == 7 * product


def test_attention_of_grouped_heads_is_that_of_all_heads_of_q() -> None:
    """Whatever PyTorch's own counter makes of it, and with more keys than queries."""
    q = torch.randn(2, 4, 6, 8, requires_grad=True)
    k, v = torch.randn(2, 2, 2, 10, 8, requires_grad=True).unbind()
    product = 2 * 2 * 4 * 6 * 10 * 8

    def forward() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    assert count_flops(forward) == 2 * product
    assert count_flops(lambda: forward().sum().backward()) == 7 * product


def test_a_linear_layer_forward_and_backward() -> None:
    """Twice the forward for both gradients."""
    layer, x = nn.Linear(5, 7), A.clone().requires_grad_()
    assert count_flops(lambda: layer(x).sum().backward()) == 3 * 2 * 3 * 5 * 7


def test_the_rule_counts_in_proportion_to_batch_and_heads() -> None:
    def flops(batch: int, heads: int) -> int:
        k, v = torch.randn(batch, 64, heads, 8), torch.randn(batch, 64, heads, 16)
        g = torch.zeros(batch, 64, heads)
        return count_flops(lambda: gated_delta_rule(k, k, v, g, g))

    assert flops(2, 3) == 6 * flops(1, 1) > 0


def test_bytes_come_and_go_and_the_peak_stays() -> None:
    parameter = torch.ones(1000)
    with LiveBytes() as counter:
        a = torch.ones(100)
        b = a.view(10, 10)
        a += 1
        parameter.view(10, 100)  # it was there before
        parameter.mul_(2)
        assert counter.peak == 400
        del a
        c = b + 1
        assert counter.peak == 800
        del b, c
        d = torch.ones(150)
        assert counter.peak == 800
        e = d.double()
        assert counter.peak == 600 + 1200
    del d, e


def test_bytes_are_of_what_is_kept_alive() -> None:
    held = torch.zeros(100)
    assert tensor_bytes((held[:1], {"same": held.view(10, 10)}, None, 3)) == 400
