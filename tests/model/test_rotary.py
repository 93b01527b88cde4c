"""Rotary positions: relative, shiftable, exact far out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reverie.model.rotary import rotate, shift

BASE = 100.0


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_pairs_turn_as_complex_numbers() -> None:
    """(x_{2i}, x_{2i+1}) is a complex number, turned by position · base^(−2i / d)."""
    x, start = normal(2, 5, 3, 6), 4
    z = torch.complex(x[..., 0::2], x[..., 1::2])
    angle = torch.arange(start, start + 5, dtype=torch.float64)[:, None, None] * BASE ** (-torch.arange(0, 6, 2) / 6)
    turned = z * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(
        rotate(x, start, BASE), torch.stack([turned.real, turned.imag], -1).flatten(-2), rtol=0, atol=1e-6
    )


def test_products_depend_on_the_distance_alone() -> None:
    q, k = normal(1, 1, 2, 8), normal(1, 1, 2, 8, seed=1)

    def product(i: int, j: int) -> Tensor:
        return (rotate(q, i, BASE) * rotate(k, j, BASE)).sum(-1)

    for i, j in [(3, 0), (7, 4), (1003, 1000)]:
        torch.testing.assert_close(product(i, j), product(3, 0))
    assert not torch.allclose(product(4, 0), product(3, 0))


@pytest.mark.parametrize("by", [-9, -1, 0, 1, 5, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shift_moves_what_is_rotated(by: int, dtype: torch.dtype) -> None:
    x = normal(2, 5, 3, 8, dtype=dtype)
    torch.testing.assert_close(shift(rotate(x, 10, BASE), by, BASE), rotate(x, 10 + by, BASE))


def test_position_zero_changes_nothing() -> None:
    x = normal(1, 1, 2, 8)
    torch.testing.assert_close(rotate(x, 0, BASE), x, rtol=0, atol=0)


def test_far_positions_are_exact_in_float32() -> None:
    """Angles are made in float64."""
    x = normal(1, 1, 1, 8)
    torch.testing.assert_close(rotate(x.float(), 10**6, BASE).double(), rotate(x, 10**6, BASE), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_type_is_kept(dtype: torch.dtype) -> None:
    x = normal(1, 3, 2, 8, dtype=dtype)
    assert rotate(x, 2, BASE).dtype == shift(x, 2, BASE).dtype == dtype


def test_gradients_after_a_call_in_inference_mode() -> None:
    """The angles are kept between calls; those first made in inference mode must serve training too."""
    x, base = normal(1, 3, 2, 8), 123.0  # a base of its own: nothing is kept for it yet
    with torch.inference_mode():
        rotate(x, 2, base)
    assert torch.autograd.gradcheck(lambda x: rotate(x, 2, base), [x.requires_grad_()])
