"""The update rules in parallel form: chunks of tokens at once, the same functions as `reference.py`.

Inside a chunk every write is w_i = β_i (v_i − α_i k_i S), where S is the memory as token i finds it. Written with the
memory S₀ at the chunk's start and G_i = Σ_{j≤i} g_j, this is a triangular system (the WY form, arXiv 2406.06484):

    (I + A) w = β v − (β e^G k) S₀ ,    A_ij = β_i e^{G_i − G_j} k_i·k_j  for j < i
    o = scale · ( e^G q S₀ + M w ) ,    M_ij = e^{G_i − G_j} q_i·k_j      for j ≤ i
    S₁ = e^{G_C} S₀ + Σ_j e^{G_C − G_j} k_j w_jᵀ

The hebbian rule has A = 0. The system is solved for all chunks together; only S passes from chunk to chunk.
All decays enter as e^{G_i − G_j} with j ≤ i, which is at most 1, so strong decay cannot overflow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def _decays(
    g: Float[Tensor, "B H N C"],
) -> tuple[Float[Tensor, "B H N C C"], Float[Tensor, "B H N C 1"], Float[Tensor, "B H N C 1"]]:
    """e^{G_i − G_j} for j ≤ i (0 above the diagonal), e^{G_i}, and e^{G_C − G_j}.

    Sums in float64: after one g = −20 the difference of two float32 sums would have lost the small decays behind it.
    """
    G = g.double().cumsum(-1)
    C = g.shape[-1]
    above = torch.ones(C, C, dtype=torch.bool, device=g.device).triu(1)
    # Masked before exp: above the diagonal it would overflow, and inf · 0 poisons the gradient.
    between = (G[..., :, None] - G[..., None, :]).to(g.dtype).masked_fill(above, -torch.inf).exp()
    return between, G.to(g.dtype).exp()[..., None], (G[..., -1:] - G).to(g.dtype).exp()[..., None]


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
    """As `reference.recurrence`; `chunk_size` (64 if None) trades parallel work against passes over S."""
    out_dtype, dtype = v.dtype, torch.promote_types(v.dtype, torch.float32)
    T = k.shape[1]
    C = min(chunk_size or 64, T)
    pad = -T % C

    def chunks(x: Tensor) -> Tensor:  # [B, T, H, X] -> [B, H, N, C, X]; padding writes nothing and decays nothing
        x = F.pad(x.to(dtype), (0, 0, 0, 0, 0, pad)) if pad else x.to(dtype)
        return x.unflatten(1, (-1, C)).permute(0, 3, 1, 2, 4)

    k, v, beta = chunks(k), chunks(v), chunks(beta[..., None])
    B, H, N, _, K = k.shape
    S = k.new_zeros(B, H, K, v.shape[-1]) if initial_state is None else initial_state.to(dtype)
    between, from_start, to_end = (None,) * 3 if g is None else _decays(chunks(g[..., None]).squeeze(-1))
    w, w_S = beta * v, None  # the writes are w − w_S S₀
    if erase:
        w_S = beta * k if from_start is None else beta * from_start * k
        A = (beta * k) @ k.transpose(-1, -2)
        A = A if between is None else A * between
        # unitriangular: the diagonal of A is not read, nor what is above
        w, w_S = torch.linalg.solve_triangular(A, torch.cat([w, w_S], -1), upper=False, unitriangular=True).split(
            [v.shape[-1], K], dim=-1
        )
    q_S, M = None, None  # o = q_S S₀ + M w
    if q is not None:
        q_S = chunks(q) * scale
        M = q_S @ k.transpose(-1, -2)
        M = M.tril() if between is None else M * between
        q_S = q_S if from_start is None else q_S * from_start
    k_end = (k if to_end is None else k * to_end).transpose(-1, -2)

    # unbind, not indexing: its backward stacks once, an index writes a whole zero tensor per chunk
    def per_chunk(x: Tensor | None) -> Sequence[Tensor | None]:
        return [None] * N if x is None else x.unbind(2)

    decay = None if from_start is None else from_start[..., -1:, :]
    outputs = []
    for k_c, w_c, w_S_c, q_S_c, M_c, decay_c in zip(*map(per_chunk, (k_end, w, w_S, q_S, M, decay)), strict=True):
        w_c = w_c if w_S_c is None else w_c - w_S_c @ S
        if q_S_c is not None:
            outputs.append(q_S_c @ S + M_c @ w_c)
        S = (S if decay_c is None else decay_c * S) + k_c @ w_c
    if q is None:
        return None, S
    o = torch.stack(outputs, dim=2).permute(0, 2, 3, 1, 4).flatten(1, 2)
    return (o[:, :T] if pad else o).to(out_dtype), S
