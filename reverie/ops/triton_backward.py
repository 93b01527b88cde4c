"""The update rules as Triton kernels: the backward pass. `triton_kernels.py` has what both share, and the counts."""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportPossiblyUnboundVariable=false
import triton
import triton.language as tl

from reverie.ops.triton_kernels import decays, dot, inner_products, load, load_transposed, store_transposed


@triton.jit
def _down_the_columns(
    q,
    k,
    v,
    start,
    inverse,
    do,
    dend,
    dv,
    w,
    between,
    since_start,
    to_end,
    step,
    v_token_stride,
    scale,
    T,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    GATED: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes w and dv. Returns what comes from here of the gradients of A, M, β and G_i, and that of G_T − G_i."""
    i, rows = tl.arange(0, BT), tl.arange(0, BK)
    keys = load(k, i, H * K, rows, T, K).to(OPERAND)
    dA = tl.zeros([BT, BT], tl.float32)
    dM = tl.zeros([BT, BT], tl.float32)
    dstep = tl.zeros([BT], tl.float32)
    dG = tl.zeros([BT], tl.float32)
    along = tl.zeros([BT], tl.float32)  # the gradient of G_T − G_i
    if inverse is not None:
        solved = load(inverse, i, T, i, T, T).to(OPERAND)
    if do is not None:
        M = (scale * between * inner_products(q, k, i, H, T, K, BT, OPERAND, PRECISION)).to(OPERAND)

    for column in range(0, V, BV):
        columns = column + tl.arange(0, BV)
        z = load_transposed(v, i, v_token_stride, columns, T, V)
        if inverse is not None and start is not None:
            S = load_transposed(start, rows, V, columns, K, V)
            returned = since_start[None, :] * dot(S, tl.trans(keys), OPERAND, PRECISION)
            z -= returned
        written = step[None, :] * z
        if inverse is not None:
            written = dot(written, tl.trans(solved), OPERAND, PRECISION)
        store_transposed(w, i, H * V, columns, T, V, written)
        dw = tl.zeros([BV, BT], tl.float32)
        if dend is not None:
            dS = load_transposed(dend, rows, V, columns, K, V)
            dw += to_end[None, :] * dot(dS, tl.trans(keys), OPERAND, PRECISION)
            if GATED:
                along += tl.sum(written * dw, 0)
        if do is not None:
            dy = load_transposed(do, i, H * V, columns, T, V)
            dM += dot(tl.trans(dy), written, OPERAND, PRECISION)
            dw += dot(dy, M, OPERAND, PRECISION)
        if inverse is not None:
            dw = dot(dw, solved, OPERAND, PRECISION)
            dA -= dot(tl.trans(dw), written, OPERAND, PRECISION)
        dstep += tl.sum(dw * z, 0)
        dz = step[None, :] * dw
        store_transposed(dv, i, H * V, columns, T, V, dz)
        if GATED and inverse is not None and start is not None:
            dG -= tl.sum(dz * returned, 0)

    return dA, dM, dstep, dG, along


@triton.jit
def _row_by_row(
    q,
    k,
    start,
    inverse,
    do,
    dend,
    dq,
    dk,
    dv,
    dstart,
    w,
    dA,
    dM,
    since_start,
    to_end,
    whole,
    scale,
    T,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BV: tl.constexpr,
    BLOCK: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes dq, dk and dstart. Returns what comes from here of the gradients of G_i and of G_T."""
    i = tl.arange(0, BT)
    dG = tl.zeros([BT], tl.float32)
    decayed = tl.zeros([BLOCK], tl.float32)  # S₀ · dS₁, row by row
    for row in range(0, K, BLOCK):
        block = row + tl.arange(0, BLOCK)
        near = load_transposed(k, i, H * K, block, T, K)
        dkeys = tl.zeros([BLOCK, BT], tl.float32)
        if do is not None:
            asked = load_transposed(q, i, H * K, block, T, K)
            from_start = tl.zeros([BLOCK, BT], tl.float32)  # S₀ doᵀ
        for column in range(0, V, BV):
            columns = column + tl.arange(0, BV)
            dS_start = tl.zeros([BV, BLOCK], tl.float32)
            if dend is not None:
                dS_end = load_transposed(dend, block, V, columns, K, V)
                wrote = load_transposed(w, i, H * V, columns, T, V)
                dkeys += dot(tl.trans(dS_end), to_end[None, :] * wrote, OPERAND, PRECISION)
                dS_start += whole * dS_end
            if start is not None:
                S_start = load_transposed(start, block, V, columns, K, V)
                if dend is not None:
                    decayed += tl.sum(S_start * dS_end, 0)
                if do is not None:
                    dout = load_transposed(do, i, H * V, columns, T, V)
                    from_start += dot(tl.trans(S_start), dout, OPERAND, PRECISION)
                    dS_start += dot((scale * since_start)[None, :] * dout, tl.trans(asked), OPERAND, PRECISION)
                if inverse is not None:
                    dwrite = since_start[None, :] * load_transposed(dv, i, H * V, columns, T, V)
                    dkeys -= dot(tl.trans(S_start), dwrite, OPERAND, PRECISION)
                    dS_start -= dot(dwrite, tl.trans(near), OPERAND, PRECISION)
                store_transposed(dstart, block, V, columns, K, V, dS_start)
        if do is not None:
            dqueries = (scale * since_start)[None, :] * from_start
            dG += tl.sum(dqueries * asked, 0)
            dqueries += dot(near, tl.trans(dM), OPERAND, PRECISION)
            store_transposed(dq, i, H * K, block, T, K, dqueries)
            dkeys += dot(asked, dM, OPERAND, PRECISION)
        if inverse is not None:
            dkeys += dot(near, dA, OPERAND, PRECISION)
        store_transposed(dk, i, H * K, block, T, K, dkeys)
    return dG, whole * tl.sum(decayed, 0)


@triton.jit(do_not_specialize=["T"])
def backward(
    q,  # None where the forward pass had none, or where nobody reads o
    k,
    v,
    g,  # or None
    beta,
    start,  # or None
    inverse,  # None for the hebbian rule
    do,  # None with q
    dend,  # None where nobody reads the memory
    dq,
    dk,
    dv,
    dg,
    dbeta,
    dstart,
    w,  # [B, T, H, V], to be written and read again
    v_batch_stride,
    v_token_stride,
    scale,
    T,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    BLOCK: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Down the columns once, for w and dz = dv; then for BLOCK rows of the memory after the other, again."""
    program = tl.program_id(0).to(tl.int64)
    batch, head = program // H, program % H
    first = batch * T * H + head
    k += first * K
    dk += first * K
    v += batch * v_batch_stride + head * V
    dv += first * V
    w += first * V
    beta += first
    dbeta += first
    if do is not None:
        q += first * K
        dq += first * K
        do += first * V
    if g is not None:
        g += first
        dg += first
    if start is not None:
        start += program * K * V
        dstart += program * K * V
    if dend is not None:
        dend += program * K * V
    if inverse is not None:
        inverse += program * T * T
    i = tl.arange(0, BT)
    between, since_start, to_end, whole = decays(g, i, H, T, BT)
    step = tl.load(beta + i * H, mask=i < T, other=0.0).to(tl.float32)
    dA, dM, dstep, dG, along = _down_the_columns(
        q, k, v, start, inverse, do, dend, dv, w, between, since_start, to_end, step, v_token_stride,
        scale, T, H, K, V, BT, BK, BV, g is not None, OPERAND, PRECISION,
    )  # fmt: skip

    # Again: kept in registers, they would push others out of them for the whole loop above.
    between, since_start, to_end, whole = decays(g, i, H, T, BT)
    apart = tl.zeros([BT, BT], tl.float32)  # the gradient of G_i − G_j
    if do is not None:
        dM *= scale * between
        apart += dM * inner_products(q, k, i, H, T, K, BT, OPERAND, PRECISION)
        dM = dM.to(OPERAND)
    if inverse is not None:
        dA = tl.where(i[:, None] > i[None, :], dA * between, 0.0)
        through_P = dA * inner_products(k, k, i, H, T, K, BT, OPERAND, PRECISION)
        dstep += tl.sum(through_P, 1)
        apart += step[:, None] * through_P
        dA = step[:, None] * dA
        dA = (dA + tl.trans(dA)).to(OPERAND)
    dG += tl.sum(apart, 1) - tl.sum(apart, 0)
    tl.store(dbeta + i * H, dstep.to(dbeta.dtype.element_ty), mask=i < T)
    tl.debug_barrier()  # w and dv are read by other threads than those that wrote them

    more, dG_end = _row_by_row(
        q, k, start, inverse, do, dend, dq, dk, dv, dstart, w, dA, dM, since_start, to_end, whole,
        scale, T, H, K, V, BT, BV, BLOCK, OPERAND, PRECISION,
    )  # fmt: skip
    if g is not None:
        dG += more - along
        later = tl.where(i[:, None] >= i[None, :], dG[:, None], 0.0)
        dsteps = tl.sum(later, 0) + tl.sum(along, 0) + dG_end
        tl.store(dg + i * H, dsteps.to(dg.dtype.element_ty), mask=i < T)
