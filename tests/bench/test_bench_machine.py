"""Operations are those of the formulas, and the peak is what was measured."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reverie.bench import machine
from reverie.bench.machine import Peak, count_flops, library_versions, measure_peak
from reverie.bench.timing import Timing
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


def test_the_peak_is_of_the_best_round(monkeypatch: pytest.MonkeyPatch) -> None:
    def alternate(calls: Mapping[str, Callable[[], object]], **_: Any) -> dict[str, Timing]:
        for call in calls.values():
            call()
        return {name: Timing(rounds=[0.5, 1 / (1 << i), 2.0]) for i, name in enumerate(calls, start=2)}

    monkeypatch.setattr(machine, "alternate", alternate)
    assert measure_peak(size=100, copy_bytes=4_000_000) == Peak(
        float32_gflops=4 * 2 * 100**3 / 1e9,
        bfloat16_gflops=8 * 2 * 100**3 / 1e9,
        copy_gb_per_s=16 * 2 * 4_000_000 / 1e9,
    )


def test_the_peak_of_this_machine_is_sane() -> None:
    peak = measure_peak(size=256, copy_bytes=2**20, seconds=0.0)
    assert 0.1 < peak.float32_gflops < 1e5
    assert 0.01 < peak.bfloat16_gflops < 1e6
    assert 0.01 < peak.copy_gb_per_s < 1e4


def test_shares_are_of_the_peak_in_that_number_format() -> None:
    peak = Peak(float32_gflops=200.0, bfloat16_gflops=400.0, copy_gb_per_s=1.0)
    assert peak.share(50.0) == 25.0
    assert peak.share(50.0, torch.bfloat16) == 12.5


def test_versions_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LIBRARIES", ("torch", "no-such-library"))
    assert library_versions() == {"torch": importlib.metadata.version("torch")}
