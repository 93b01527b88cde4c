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
    B, _, H, K = k.shape
    if any(x is not None and x.dtype != dtype for x in (q, k, v, g, beta, initial_state)):
        k, v, beta = k.to(dtype), v.to(dtype), beta.to(dtype)
        q, g, initial_state = (x if x is None else x.to(dtype) for x in (q, g, initial_state))
    k, v, beta = k.reshape(B * H, 1, K), v.reshape(B * H, 1, -1), beta.reshape(B * H, 1, 1)
    if initial_state is None:
        S = torch.bmm(k.mT, beta * v)
    else:
        S = initial_state.reshape(B * H, K, -1)
        S = S if g is None else S * g.exp().reshape(B * H, 1, 1)
        u = beta * (_add(v, k, S, -1) if erase else v)
        S = torch.addcmul(S, k.mT, u) if g is None else S.addcmul_(k.mT, u)
    o = None if q is None else _add(v, q.reshape(B * H, 1, K), S, scale, beta=0).view(B, 1, H, -1)
    return o if o is None or o.dtype == out_dtype else o.to(out_dtype), S.view(B, H, K, -1)


def _add(x: Tensor, k: Tensor, S: Tensor, by: float, beta: int = 1) -> Tensor:
    """beta x + by k @ S; for a compiler as a sum, which it fuses with the steps before and after."""
    if not torch.compiler.is_compiling():
        return torch.baddbmm(x, k, S, beta=beta, alpha=by)
    return (x if beta else 0) + by * (k.mT * S).sum(-2, keepdim=True)
