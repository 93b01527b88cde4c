"""Rotary position embedding (arXiv 2104.09864): neighbouring pairs of a head are rotated as complex numbers."""

import functools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reverie.ops.constant import constant_when_compiled


@functools.cache  # few, and never freed: a recorded CUDA graph reads them at their address
def _cached_table(
    heads: int, head_size: int, base: float, length: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    made_on = torch.device("cpu") if device.type == "mps" else device  # Metal has no float64
    with torch.inference_mode(False):  # a table cached by an inference call must serve training too
        frequency = base ** -(torch.arange(0, head_size, 2, device=made_on, dtype=torch.float64) / head_size)
        angle = torch.arange(length, device=made_on, dtype=torch.float64)[:, None] * frequency
        return torch.stack((angle.cos(), angle.sin()), dim=-1).repeat(1, heads, 1).to(dtype).to(device)


@constant_when_compiled
def _table(heads: int, head_size: int, base: float, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Real and imaginary parts of e^{i·position·frequency} for positions 0 … length − 1, [length, H · d/2, 2].

    Repeated for every head: broadcasting over heads would leave the CPU inner loops of d/2 steps.
    """
    return _cached_table(heads, head_size, base, length, dtype, device)


def _turns(x: Tensor, start: int, stop: int, base: float) -> Tensor:
    """Rotations of positions start … stop − 1 for x's heads, [stop − start, H · d/2, 2]."""
    length = 1 << max(stop - 1, 63).bit_length()  # powers of two, so that few tables serve all lengths
    dtype = x.dtype if x.dtype == torch.float32 else torch.promote_types(x.dtype, torch.float32)
    return _table(x.shape[2], x.shape[3], base, length, dtype, x.device).narrow(0, start, stop - start)


def _turn(x: Tensor, turns: Tensor, *, back: bool = False) -> Tensor:
    """Rotate x [B, T, H, d] by `turns`, or back by as much."""
    pairs = x if x.dtype == turns.dtype else x.to(turns.dtype)
    pairs = pairs.reshape(*x.shape[:2], x.shape[2] * x.shape[3] // 2, 2)
    if torch.compiler.is_compiling():  # torch.compile knows no complex numbers, and fuses these steps
        real, imaginary = pairs.unbind(-1)
        c, s = turns.unbind(-1)
        s = -s if back else s
        turned = torch.stack((real * c - imaginary * s, real * s + imaginary * c), dim=-1)
    else:
        complex_turns = torch.view_as_complex(turns)
        turned = torch.view_as_real(torch.view_as_complex(pairs) * (complex_turns.conj() if back else complex_turns))
    turned = turned.view(x.shape)
    return turned if turned.dtype == x.dtype else turned.to(x.dtype)


def rotate(x: Float[Tensor, "B T H d"], start: int, base: float) -> Float[Tensor, "B T H d"]:
    """Rotate token t of x to position start + t."""
    return _turn(x, _turns(x, start, start + x.shape[1], base))


def rotate_at(x: Float[Tensor, "B 1 H d"], place: Int[Tensor, " 1"], places: int, base: float) -> Tensor:
    """Rotate one token to a place among `places` that only the tensor says: in a graph for all of them."""
    return _turn(x, _turns(x, 0, places, base).index_select(0, place))


def shift(x: Float[Tensor, "B T H d"], by: int, base: float) -> Float[Tensor, "B T H d"]:
    """Move all tokens of x, which are already rotated, by `by` positions."""
    return _turn(x, _turns(x, abs(by), abs(by) + 1, base), back=by < 0)
