"""The update rules of the fast weights, token by token: the specification that every other backend is tested against.

S is the memory of one head, [K, V]; it maps a key to a value. Per token, with decay α = exp(g) and step size β:

    hebbian       S ← α S + β k vᵀ                                  (paper equation 3)
    delta         S ← S + β k (v − Sᵀk)ᵀ                            (what S already returns for k is taken away first)
    gated delta   S ← α S,  then as delta                           (Gated DeltaNet, arXiv 2412.06464)

and the output is o = scale · Sᵀq, read after the write. The paper writes S as [V, K]; ours is its transpose, as in fla.

Shapes: B batch, T tokens, H heads, K key size, V value size.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


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
    chunk_size: int | None = None,  # of other backends
) -> tuple[Float[Tensor, "B T H V"] | None, Float[Tensor, "B H K V"]]:
    """Run one of the rules: with `g` the memory decays (None: it does not), with `erase` it is a delta rule.

    Returns:
        o [B, T, H, V] in v's dtype (None without q), and the final S [B, H, K, V], float32 or wider.
    """
    out_dtype, dtype = v.dtype, torch.promote_types(v.dtype, torch.float32)
    k, v, beta = (x.to(dtype) for x in (k, v, beta))
    B, T, H, K = k.shape
    S = k.new_zeros(B, H, K, v.shape[-1]) if initial_state is None else initial_state.to(dtype)
    outputs = []
    for t in range(T):
        if g is not None:
            S = S * g[:, t].to(dtype).exp()[..., None, None]
        k_t, v_t = k[:, t], v[:, t]
        if erase:
            v_t = v_t - torch.einsum("bhkv,bhk->bhv", S, k_t)
        S = S + torch.einsum("bhk,bhv->bhkv", k_t, beta[:, t, :, None] * v_t)
        if q is not None:
            outputs.append(scale * torch.einsum("bhkv,bhk->bhv", S, q[:, t].to(dtype)))
    return torch.stack(outputs, dim=1).to(out_dtype) if outputs else None, S
