"""The fused functions are the formulas in their docstrings, backward included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reverie.model.fused import causal_conv_silu, normalise, rms_norm


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def naive_conv(extended: Tensor, weight: Tensor) -> Tensor:
    conv_size, T = len(weight), extended.shape[1] - len(weight) + 1
    rows = [sum(weight[i] * extended[:, t + i] for i in range(conv_size)) for t in range(T)]
    return F.silu(torch.stack([torch.as_tensor(row) for row in rows], 1))


@pytest.mark.parametrize("size", [1.0, 2.5])
@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_normalise(size: float, eps: float) -> None:
    x = normal(3, 4, 5).requires_grad_()
    torch.testing.assert_close(normalise(x, size, eps), x * size / (x.square().sum(-1, keepdim=True) + eps).sqrt())
    assert torch.autograd.gradcheck(lambda x: normalise(x, size, eps), [x])


def test_rms_norm() -> None:
    x = normal(3, 4, 5).requires_grad_()
    torch.testing.assert_close(rms_norm(x, 0.1), F.rms_norm(x, (5,), eps=0.1))
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, 0.1), [x])


def test_zero_vectors_stay_zero_with_finite_gradients() -> None:
    """The first tokens of a window meet zeros; the gradient there is size / √eps."""
    x = torch.zeros(2, 3, requires_grad=True)
    y = normalise(x, 2.0, 1e-4)
    y.sum().backward()
    torch.testing.assert_close(y, torch.zeros(2, 3))
    torch.testing.assert_close(x.grad, torch.full((2, 3), 200.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 7), (2, 1, 7), (1, 1, 3, 7)])
@pytest.mark.parametrize("size", [1.0, 7**0.5])
def test_of_a_token_awake_it_is_the_same(shape: tuple[int, ...], dtype: torch.dtype, size: float) -> None:
    for scale, eps in ((1.0, 1e-6), (1e-3, 1e-4), (0.0, 1e-6), (1.0, 0.0), (0.0, 0.0), (torch.inf, 1e-6)):
        x = normal(*shape, dtype=dtype) * scale
        wanted = normalise(x, size, eps)
        with torch.no_grad():
            got = normalise(x, size, eps)
        torch.testing.assert_close(got, wanted, equal_nan=True)


@pytest.mark.parametrize("conv_size", [1, 2, 4])
@pytest.mark.parametrize("T", [1, 3, 6])
def test_causal_conv_silu(T: int, conv_size: int) -> None:
    extended, weight = normal(2, T + conv_size - 1, 3).requires_grad_(), normal(conv_size, 3).requires_grad_()
    torch.testing.assert_close(causal_conv_silu(extended, weight), naive_conv(extended, weight))
    assert torch.autograd.gradcheck(causal_conv_silu, [extended, weight])


def test_the_cotangent_is_not_overwritten() -> None:
    """The backward of the convolution works in place, on a copy."""
    extended, weight = normal(1, 5, 3).requires_grad_(), normal(4, 3).requires_grad_()
    cotangent = normal(1, 2, 3)
    before = cotangent.clone()
    causal_conv_silu(extended, weight).backward(cotangent)
    torch.testing.assert_close(cotangent, before, rtol=0, atol=0)


def test_only_one_input_may_want_a_gradient() -> None:
    extended, weight = normal(1, 5, 3), normal(4, 3).requires_grad_()
    (got,) = torch.autograd.grad(causal_conv_silu(extended, weight).square().sum(), [weight])
    (wanted,) = torch.autograd.grad(naive_conv(extended, weight).square().sum(), [weight])
    torch.testing.assert_close(got, wanted)


def test_bfloat16() -> None:
    """Values and gradients keep their type and are those of float32 to bfloat16's precision."""
    cotangent = normal(2, 6, 4, dtype=torch.float32)

    def outcome(dtype: torch.dtype) -> list[Tensor]:
        extended = normal(2, 9, 4, dtype=torch.bfloat16).to(dtype).requires_grad_()
        weight = normal(4, 4, dtype=torch.bfloat16).to(dtype).requires_grad_()
        y = rms_norm(causal_conv_silu(extended, weight))
        return [y, *torch.autograd.grad(y, [extended, weight], cotangent.to(dtype))]

    for got, wanted in zip(outcome(torch.bfloat16), outcome(torch.float32), strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.float() - wanted).norm() < 0.02 * wanted.norm()


@torch.no_grad()
def test_a_row_is_mapped_differentiated_and_traced() -> None:
    """What sees calls, and no numbers, gets the same function."""
    torch.manual_seed(0)
    x = torch.randn(3, 1, 1, 5)
    alone = torch.stack([rms_norm(row, 1e-6) for row in x])
    torch.testing.assert_close(torch.vmap(lambda row: rms_norm(row, 1e-6))(x), alone)
    y, tangent, *_ = torch.func.jvp(lambda row: rms_norm(row, 1e-6), (x[0],), (x[0],))
    torch.testing.assert_close(y, alone[0])
    torch.testing.assert_close(tangent, torch.zeros_like(tangent), atol=1e-4, rtol=0)  # longer, and so the same
    traced: Any = torch.jit.trace(lambda row: rms_norm(row, 1e-6), (x[0],))
    torch.testing.assert_close(traced(x[1]), alone[1])
