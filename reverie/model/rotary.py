"""Rotary position embedding (arXiv 2104.09864), in the half-split layout of Llama."""

from __future__ import annotations

import functools

import torch
from jaxtyping import Float
from torch import Tensor


@functools.lru_cache(maxsize=64)
def _angles(
    head_size: int, base: float, start: int, stop: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(cos, sin), each [1, T, 1, d/2]."""
    with torch.inference_mode(False):  # they are kept, and a later call may want gradients
        frequency = base ** -(torch.arange(0, head_size, 2, device=device, dtype=torch.float64) / head_size)
        angle = torch.arange(start, stop, device=device, dtype=torch.float64)[:, None] * frequency
        return angle.cos().to(dtype)[None, :, None], angle.sin().to(dtype)[None, :, None]


def _turn(x: Tensor, start: int, stop: int, base: float) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    cos, sin = _angles(x.shape[-1], base, start, stop, x.device, dtype)
    x1, x2 = x.to(dtype).chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1).to(x.dtype)


def rotate(x: Float[Tensor, "B T H d"], start: int, base: float) -> Float[Tensor, "B T H d"]:
    """Turn token t of x to position start + t."""
    return _turn(x, start, start + x.shape[1], base)


def shift(x: Float[Tensor, "B T H d"], by: int, base: float) -> Float[Tensor, "B T H d"]:
    """Move x, already rotated, by the same number of positions for all tokens."""
    return x if by == 0 else _turn(x, by, by + 1, base)
