"""Rotary position embedding (arXiv 2104.09864): neighbouring pairs of a head are complex numbers that turn."""

from __future__ import annotations

import functools

import torch
from jaxtyping import Float
from torch import Tensor


@functools.lru_cache(maxsize=1024)
def _turns(
    heads: int, head_size: int, base: float, start: int, stop: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """e^{i·position·frequency}, flat [T · heads · d/2].

    Repeated for every head: broadcasting over them would leave the CPU inner loops of d/2 steps.
    """
    with torch.inference_mode(False):  # what is kept from an inference call must serve training too
        frequency = base ** -(torch.arange(0, head_size, 2, device=device, dtype=torch.float64) / head_size)
        angle = torch.arange(start, stop, device=device, dtype=torch.float64)[:, None] * frequency
        return torch.polar(torch.ones_like(angle), angle)[:, None].expand(-1, heads, -1).flatten().to(dtype)


def _turn(x: Tensor, start: int, stop: int, base: float) -> Tensor:
    accurate = torch.promote_types(x.dtype, torch.float32)
    turns = _turns(x.shape[2], x.shape[3], base, start, stop, accurate.to_complex(), x.device)
    pairs = x.to(accurate).reshape(x.shape[0], -1, 2)
    if len(turns) < pairs.shape[1]:  # one turn for all tokens
        turns = turns.repeat(x.shape[1])
    return torch.view_as_real(torch.view_as_complex(pairs) * turns).view(x.shape).to(x.dtype)


def rotate(x: Float[Tensor, "B T H d"], start: int, base: float) -> Float[Tensor, "B T H d"]:
    """Turn token t of x to position start + t."""
    return _turn(x, start, start + x.shape[1], base)


def shift(x: Float[Tensor, "B T H d"], by: int, base: float) -> Float[Tensor, "B T H d"]:
    """Move x, already rotated, by the same number of positions for all tokens."""
    return x if by == 0 or x.shape[1] == 0 else _turn(x, by, by + 1, base)
