"""The update rules in chunkwise-parallel form: the same functions as `reference.py`, many tokens at once.

The computation is in `wy.py`; here tokens are laid out in chunks, and its backward is registered with autograd.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from reverie.ops import wy

CHUNK_SIZE = 64


class _Layout(NamedTuple):
    """Conversion between [B, T, H, D] and [N, B · H, C, D]: N chunks of C tokens, each contiguous."""

    T: int
    H: int
    C: int

    def chunks(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, T, H, D] as chunks of `dtype`, padded to whole chunks with zeros, which neither write nor decay."""
        x = x.to(dtype)
        x = F.pad(x, (0, 0, 0, 0, 0, -self.T % self.C)) if self.T % self.C else x
        return x.unflatten(1, (-1, self.C)).permute(1, 0, 3, 2, 4).reshape(-1, len(x) * self.H, self.C, x.shape[-1])

    def whole(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Chunks as [B, T, H, D] of `dtype`, without the padding; a view if the dtype is the same."""
        x = x.unflatten(1, (-1, self.H)).permute(1, 0, 3, 2, 4).flatten(1, 2)[:, : self.T]
        # Not `.to` where it does nothing: compiled by torch 2.11, what it returns has no gradient, and nothing says so.
        return x if x.dtype == dtype else x.to(dtype)


class _Chunked(torch.autograd.Function):
    """Autograd function of (q or None, k, v, g or None, β, S₀ or None, scale, erase, C), which returns o and S.

    g and β are [B, T, H, 1], S₀ and S [B, H, K, V], C is the chunk size.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor | None, Tensor]:
        *sequences, S, scale, erase, C = inputs
        _, T, H, _ = sequences[1].shape
        dtype = torch.promote_types(sequences[2].dtype, torch.float32)
        layout = _Layout(T, H, C)
        chunks: Any = [None if x is None else layout.chunks(x, dtype) for x in sequences]
        start = None if S is None else S.to(dtype).flatten(0, 1)
        o, S_end, saved, decays = wy.forward(*chunks, S=start, scale=scale, erase=erase)
        ctx.save_for_backward(*saved, *(decays or ()))
        ctx.scale, ctx.layout, ctx.dtypes = scale, layout, [None if x is None else x.dtype for x in (*sequences, S)]
        ctx.set_materialize_grads(False)
        o = None if o is None else layout.whole(o, sequences[2].dtype)
        return o, S_end.unflatten(0, (-1, H))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor | None, dS: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        fields, layout = len(wy.Saved._fields), ctx.layout
        tensors = ctx.saved_tensors  # once: under activation checkpointing a second look is an error
        saved, rest = wy.Saved(*tensors[:fields]), tensors[fields:]
        decays = wy.Decays(*rest) if rest else None
        do = None if do is None else layout.chunks(do, saved.k.dtype)
        with torch.autocast(saved.k.device.type, enabled=False):  # if backward is called inside an autocast
            *sequences, dS0 = wy.backward(saved, decays, do, None if dS is None else dS.flatten(0, 1), ctx.scale)
        back = [None if x is None else layout.whole(x, t) for x, t in zip(sequences, ctx.dtypes, strict=False)]
        back.append(None if dS0 is None else dS0.unflatten(0, (-1, layout.H)).to(ctx.dtypes[-1]))
        return *(x if needed else None for x, needed in zip(back, ctx.needs_input_grad, strict=False)), None, None, None


def recurrence(
    q: Float[Tensor, "B T H K"] | None,
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    g: Float[Tensor, "B T H"] | None,
    beta: Float[Tensor, "B T H"],
    *,
    initial_state: Float[Tensor, "B H K V"] | None,
    scale: float,
    erase: bool,
    chunk_size: int | None = None,
) -> tuple[Float[Tensor, "B T H V"] | None, Float[Tensor, "B H K V"]]:
    """Run a rule as `reference.recurrence` does; `chunk_size` (64 if None) changes the speed, not the result."""
    g = None if g is None else g[..., None]
    C = min(chunk_size or CHUNK_SIZE, k.shape[1])
    return _Chunked.apply(q, k, v, g, beta[..., None], initial_state, scale, erase, C)  # pyright: ignore[reportReturnType]
