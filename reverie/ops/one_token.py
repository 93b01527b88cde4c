"""The update rules for one token awake, without gradients: the steps of `reference.py`, in few products."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def recurrence(
    q: Float[Tensor, "B 1 H K"] | None,
    k: Float[Tensor, "B 1 H K"],
    v: Float[Tensor, "B 1 H V"],
    g: Float[Tensor, "B 1 H"] | None,
    beta: Float[Tensor, "B 1 H"],
    *,
    initial_state: Float[Tensor, "B H K V"] | None,
    scale: float,
    erase: bool,
    chunk_size: int | None = None,  # of other backends
) -> tuple[Float[Tensor, "B 1 H V"] | None, Float[Tensor, "B H K V"]]:
    """Run a rule as `reference.recurrence` does; the state that it begins with stays as it is."""
    out_dtype, dtype = v.dtype, torch.promote_types(v.dtype, torch.float32)
    k, v, beta = (x.to(dtype).transpose(1, 2) for x in (k, v, beta[..., None]))  # [B, H, 1, …]
    if initial_state is None:
        S = k.mT * (beta * v)
    else:
        S = initial_state.to(dtype)
        S = S if g is None else S * g.to(dtype).exp().transpose(1, 2)[..., None]
        u = beta * (v - _read(k, S) if erase else v)
        S = torch.addcmul(S, k.mT, u) if g is None else S.addcmul_(k.mT, u)
    if q is None:
        return None, S
    return _read(q.to(dtype).transpose(1, 2) * scale, S).transpose(1, 2).to(out_dtype), S


def _read(k: Tensor, S: Tensor) -> Tensor:
    """k @ S; for a compiler as a sum, which it fuses with the steps before and after."""
    return (k.mT * S).sum(-2, keepdim=True) if torch.compiler.is_compiling() else k @ S
