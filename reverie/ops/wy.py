"""The chunkwise WY form of the update rules and its gradients, on tensors that `chunked.py` has cut into chunks.

Inside a chunk every write is w_i = β_i (v_i − α_i k_i S), where S is the memory as token i finds it. Written with the
memory S₀ at the chunk's start and G_i = Σ_{j≤i} g_j, this is a triangular system (the WY form, arXiv 2406.06484):

    z = v − (e^G k) S₀
    (I + A) w = β z ,                   A_ij = β_i P_ij ,  P_ij = e^{G_i − G_j} k_i·k_j  for j < i
    o = (scale e^G q) S₀ + M w ,        M_ij = scale e^{G_i − G_j} q_i·k_j               for j ≤ i
    S₁ = e^{G_C} S₀ + Σ_j e^{G_C − G_j} k_j w_jᵀ

The hebbian rule has z = v and A = 0. I + A is inverted for all chunks together; only S passes from chunk to chunk. All
decays enter as e^{G_i − G_j} with j ≤ i, which is at most 1, so strong decay cannot overflow.

The backward pass is written out: autograd would launch several times as many kernels, and most of them wait for memory.
It takes the lines from the last to the first, again with only the gradient of S going from chunk to chunk.

Shapes: X = B · H heads of the batch, N chunks, C tokens a chunk: [N, X, C, K] for q and k, [N, X, C, V] for v.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Decays(NamedTuple):
    """Products of decays inside each chunk."""

    between: Tensor  # e^{G_i − G_j} for j ≤ i, 0 above the diagonal  [N, X, C, C]
    since_start: Tensor  # e^{G_i}  [N, X, C, 1]
    to_end: Tensor  # e^{G_C − G_i}  [N, X, C, 1]
    whole: Tensor  # e^{G_C}  [N, X, 1, 1]


def _decays(g: Float[Tensor, "N X C 1"]) -> Decays:
    """Products of decays from log decays g.

    Sums are in float64: after one g = −20, differences of float32 sums would have lost the small decays that follow.
    """
    if g.device.type == "mps":  # Metal has no float64
        return Decays(*(x.to(g.device) for x in _decays(g.cpu())))
    G = g.double().cumsum(-2)
    C = g.shape[-2]
    above = torch.ones(C, C, dtype=torch.bool, device=g.device).triu(1)
    # Masked before exp: above the diagonal it would overflow.
    between = (G - G.transpose(-1, -2)).to(g.dtype).masked_fill_(above, -torch.inf).exp_()
    end = G[..., -1:, :]
    return Decays(between, G.exp().to(g.dtype), (end - G).to(g.dtype).exp_(), end.exp().to(g.dtype))


class Saved(NamedTuple):
    """Tensors that the backward pass reads, named as in the equations; None where a rule or a call has none."""

    k: Tensor
    beta: Tensor  # [N, X, C, 1]
    k_start: Tensor  # e^G k
    k_end: Tensor  # e^{G_C − G} k
    z: Tensor
    w: Tensor
    P: Tensor | None
    inverse: Tensor | None  # (I + A)⁻¹
    starts: Tensor | None  # S₀ of every chunk that does not start from zero  [N or N − 1, X, K, V]; None if none does
    q: Tensor | None
    q_start: Tensor | None  # scale e^G q of these chunks
    M: Tensor | None

    @property
    def zero(self) -> int:
        """Number of chunks that start from zero fast weights: 1 (the first) or 0."""
        return 0 if self.starts is None else len(self.k) - len(self.starts)


def forward(
    q: Tensor | None, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, S: Tensor | None, scale: float, erase: bool
) -> tuple[Tensor | None, Tensor, Saved, Decays | None]:
    """Return o [N, X, C, V], the final S [X, K, V], and what `backward` needs; g and β are [N, X, C, 1]."""
    decays = None if g is None else _decays(g)
    k_start, k_end, P, inverse, writes = k, k, None, None, None
    if decays is not None:
        k_start, k_end = k * decays.since_start, k * decays.to_end
    if erase:
        P = k @ k.mT if decays is None else (k @ k.mT).mul_(decays.between)
        eye = torch.eye(k.shape[-2], dtype=k.dtype, device=k.device).expand_as(P)
        # unitriangular: the diagonal is not read, nor what is above
        inverse = torch.linalg.solve_triangular(beta * P, eye, upper=False, unitriangular=True)
        writes = inverse * beta.mT
    starts, z, w, S = _pass_on(k_start, k_end, v, beta, writes, decays, S)
    q_start, M, o = None, None, None
    if q is not None:
        M = _product(q, k.mT, scale)
        M = M.tril_() if decays is None else M.mul_(decays.between)
        o = M @ w
        if starts is not None:
            zero = len(k) - len(starts)
            q_start = q[zero:] * scale if decays is None else q[zero:] * (scale * decays.since_start[zero:])
            _add_product(o[zero:], q_start, starts)
    return o, S, Saved(k, beta, k_start, k_end, z, w, P, inverse, starts, q, q_start, M), decays


def _pass_on(
    k_start: Tensor,
    k_end: Tensor,
    v: Tensor,
    beta: Tensor,
    writes: Tensor | None,
    decays: Decays | None,
    S: Tensor | None,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Carry S through the chunks; return S at the start of each (but not a zero one), z, w, and the final S.

    `writes` is (I + A)⁻¹ diag(β); None for the hebbian rule, which erases nothing.
    """
    N, X, _, V = v.shape
    K, zero = k_end.shape[-1], 1 if S is None else 0
    if writes is None or len(v) == zero:
        z, w = v, beta * v if writes is None else writes @ v
    else:
        z, w = torch.empty_like(v), torch.empty_like(v)
    if len(v) == zero:
        return None, z, w, torch.bmm(k_end[0].mT, w[0])
    starts, end = v.new_empty(N - zero, X, K, V), v.new_empty(X, K, V)
    if S is not None:
        starts[0] = S
    for n in range(N):
        before, after = starts[n - zero] if n >= zero else None, starts[n + 1 - zero] if n + 1 < N else end
        if writes is not None:
            z[n].copy_(v[n])
            if before is not None:
                z[n].baddbmm_(k_start[n], before, alpha=-1)
            w[n].baddbmm_(writes[n], z[n], beta=0)
        if before is None:
            torch.bmm(k_end[n].mT, w[n], out=after)
        else:
            _decayed(before, decays, n, out=after).baddbmm_(k_end[n].mT, w[n])
    return starts, z, w, end


def _decayed(S: Tensor, decays: Decays | None, n: int, out: Tensor) -> Tensor:
    """S after the decays of chunk n, written to `out`."""
    return out.copy_(S) if decays is None else torch.mul(S, decays.whole[n], out=out)


def backward(
    saved: Saved, decays: Decays | None, do: Tensor | None, dS: Tensor | None, scale: float
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v, g, β and the first S; None for absent ones."""
    dy, dz, ends, dS = _pass_back(saved, decays, do, dS)
    dbeta = (dy * saved.z).sum(-1, keepdim=True)
    dk, dG = _through_memory(saved, decays, ends)
    dq, between = None, None  # `between`: the gradient of G_i − G_j
    if do is not None:
        dq, between = _through_output(saved, decays, do, scale, dk, dG)
    if saved.P is not None:
        between = _through_writes(saved, decays, dy, dz, between, dk, dG, dbeta)
    return dq, dk, dz, None if dG is None else _through_gates(dG, between), dbeta, dS


def _pass_back(
    saved: Saved, decays: Decays | None, do: Tensor | None, dS: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Carry the gradient of S backwards through the chunks.

    Returns gradients of y = β z, of z, of S at the end of each chunk (None if nothing is carried), and of the first S
    (None also if the first chunk starts from zero).
    """
    starts, inverse, zero = saved.starts, saved.inverse, saved.zero
    dw = torch.zeros_like(saved.w) if do is None or saved.M is None else saved.M.mT @ do
    if starts is None:
        if dS is not None:
            _add_product(dw, saved.k_end, dS[None])
        dy = dw if inverse is None else inverse.mT @ dw
        return dy, saved.beta * dy, None if dS is None else dS[None], None
    read = None if do is None or saved.q_start is None else saved.q_start.mT @ do[zero:]
    ends, first = starts.new_empty(len(dw), *starts.shape[1:]), None if zero else torch.empty_like(starts[0])
    ends[-1] = 0.0 if dS is None else dS
    dy, dz = dw if inverse is None else torch.empty_like(dw), torch.empty_like(dw)
    for n in reversed(range(len(dw))):
        dw[n].baddbmm_(saved.k_end[n], ends[n])
        if inverse is not None:
            dy[n].baddbmm_(inverse[n].mT, dw[n], beta=0)
        torch.mul(dy[n], saved.beta[n], out=dz[n])
        if (dS := ends[n - 1] if n else first) is None:
            break
        _decayed(ends[n], decays, n, out=dS)
        if read is not None and n >= zero:
            dS += read[n - zero]
        if inverse is not None:
            dS.baddbmm_(saved.k_start[n].mT, dz[n], alpha=-1)
    return dy, dz, ends, first


def _through_memory(saved: Saved, decays: Decays | None, ends: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Gradients of k and G (None without decays) through S₁ = e^{G_C} S₀ + k_endᵀ w; other parts are added later."""
    if ends is None:
        return torch.zeros_like(saved.k), None if decays is None else torch.zeros_like(saved.beta)
    dk_end = saved.w @ ends.mT
    if decays is None:
        return dk_end, None
    along = (dk_end * saved.k_end).sum(-1, keepdim=True)
    whole = along.sum(-2, keepdim=True)
    if saved.starts is not None:
        zero = saved.zero
        whole[zero:] += decays.whole[zero:] * (saved.starts * ends[zero:]).sum((-2, -1), keepdim=True)
    dG = along.neg_()
    dG[..., -1:, :] += whole
    return dk_end.mul_(decays.to_end), dG


def _through_output(
    saved: Saved, decays: Decays | None, do: Tensor, scale: float, dk: Tensor, dG: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Gradients of q and G_i − G_j through o = q_start S₀ + M w; adds those of k and G to `dk` and `dG`."""
    q, q_start, M = saved.q, saved.q_start, saved.M
    assert q is not None
    assert M is not None
    dM = do @ saved.w.mT
    between = None if decays is None else dM * M
    dM = dM.tril_() if decays is None else dM.mul_(decays.between)
    dq = _product(dM, saved.k, scale)
    _add_product(dk, dM.mT, q, scale)
    if saved.starts is not None and q_start is not None:
        zero = saved.zero
        dq_start = do[zero:] @ saved.starts.mT
        if decays is None or dG is None:
            dq[zero:].add_(dq_start, alpha=scale)
        else:
            dG[zero:] += (dq_start * q_start).sum(-1, keepdim=True)
            dq[zero:].addcmul_(dq_start, decays.since_start[zero:], value=scale)
    return dq, between


def _through_writes(
    saved: Saved,
    decays: Decays | None,
    dy: Tensor,
    dz: Tensor,
    between: Tensor | None,
    dk: Tensor,
    dG: Tensor | None,
    dbeta: Tensor,
) -> Tensor | None:
    """Gradient of G_i − G_j through (I + A) w = y and z = v − k_start S₀; adds those of k, G, β in place."""
    assert saved.P is not None
    dA = _product(dy, saved.w.mT, -1.0).tril_(-1)
    dP = dA * saved.beta
    inside = dA.mul_(saved.P)
    dbeta += inside.sum(-1, keepdim=True)
    if decays is not None:
        inside.mul_(saved.beta)
        between = inside if between is None else between.add_(inside)
        dP.mul_(decays.between)
    _add_product(dk, dP + dP.mT, saved.k)
    if saved.starts is not None:
        zero = saved.zero
        dk_start = _product(dz[zero:], saved.starts.mT, -1.0)
        if decays is None or dG is None:
            dk[zero:] += dk_start
        else:
            dG[zero:] += (dk_start * saved.k_start[zero:]).sum(-1, keepdim=True)
            dk[zero:].addcmul_(dk_start, decays.since_start[zero:])
    return between


def _through_gates(dG: Tensor, between: Tensor | None) -> Tensor:
    """Gradient of g, from those of its sums G_i and of their differences G_i − G_j."""
    if between is not None:
        dG = dG + (between.sum(-1) - between.sum(-2))[..., None]
    return dG.flip(-2).cumsum(-2).flip(-2)


def _product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale · a b, for [N, X, …] batches of matrices."""
    x = a.new_empty(*a.shape[:-1], b.shape[-1])
    x.flatten(0, 1).baddbmm_(a.flatten(0, 1), b.flatten(0, 1), beta=0, alpha=scale)
    return x


def _add_product(x: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    """x += scale · a b."""
    x.flatten(0, 1).baddbmm_(a.flatten(0, 1), b.flatten(0, 1), alpha=scale)
