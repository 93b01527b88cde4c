"""The update rules as Triton kernels, for calls that fit into one chunk: T ≤ 64 tokens. Here the forward pass.

The computation is that of `wy.py`, in its names, with one chunk. One program does one head of one row of the batch. It
walks over blocks of BV columns of the memory, which need each other only for the gradients of q, k, g and β: these stay
in registers until the last block, so that nothing is summed through device memory and every run gives the same bits.
Inside, tiles of the memory and of tokens lie as [BV, BK] and [BV, BT]: what differs from block to block is the first
operand of every product, and fills it even where T is small; what is the same for all is the second.

Device memory sees every input and every output once. For a head with X bytes a value of q, k, v and o and 4 elsewhere:

                bytes                                                           operations
    forward     X T (2K + 2V) + 4 (2KV + 2T + T²)                               2 T (3KV + 2KT + 2TV)
    backward    X T (4K + 5V) + 4 (3KV + 4T + T²), of which 2 X T V are for w   2 T (7KV + 7KT + 5TV)

Backward reads S₀ and dS₁ twice, the second time from the L2 cache if it is large enough (80 to 150 KB a program).
At the size of Rule 110 (T = 24, K = 96, V = 192, float32) that is 0.21 MB and 3.3M operations a head forward, 0.35 MB
and 8.1M backward. Sizes are padded: T to BT and K to BK, powers of two, by tokens that write nothing (k = 0, β = 0,
g = 0), which adds to the operations, not to the bytes.
"""

# Triton turns annotations into values of compile time: they must not be strings.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportPossiblyUnboundVariable=false
import torch
import triton
import triton.language as tl


def tiles(name: str, T: int, K: int, V: int) -> dict[str, int]:
    """Sizes of the blocks, and how many warps share one.

    The backward of 64 tokens goes through half as many columns at a time: with 32, more than a kilobyte a thread would
    not fit into registers.
    """
    BT, BK, BV = (max(16, triton.next_power_of_2(size)) for size in (T, K, V))
    columns = 16 if name == "backward" and BT == 64 else 32
    sizes = {"BT": BT, "BK": BK, "BV": min(columns, BV), "num_warps": 4 if BK <= 128 else 8, "num_stages": 1}
    return sizes if name == "forward" else {**sizes, "BLOCK": min(32, BK)}


def operands(dtype: torch.dtype, precision: str) -> dict[str, object]:
    """What q, k, v and S become before products, which are always summed in float32."""
    short = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    if triton.knobs.runtime.interpret:
        del short[torch.bfloat16]  # the interpreter would multiply the bits as if they were whole numbers
    return {"OPERAND": short.get(dtype, tl.float32), "PRECISION": precision}


@triton.jit
def load(pointer, rows, row_stride, columns, T, size: tl.constexpr):
    """A tile in float32, 0 outside of [T, size]."""
    inside = (rows < T)[:, None] & (columns < size)[None, :]
    return tl.load(pointer + rows[:, None] * row_stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_transposed(pointer, rows, row_stride, columns, T, size: tl.constexpr):
    inside = (rows < T)[None, :] & (columns < size)[:, None]
    return tl.load(pointer + rows[None, :] * row_stride + columns[:, None], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store(pointer, rows, row_stride, columns, T, size: tl.constexpr, x):
    inside = (rows < T)[:, None] & (columns < size)[None, :]
    tl.store(pointer + rows[:, None] * row_stride + columns[None, :], x.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def store_transposed(pointer, rows, row_stride, columns, T, size: tl.constexpr, x):
    inside = (rows < T)[None, :] & (columns < size)[:, None]
    tl.store(pointer + rows[None, :] * row_stride + columns[:, None], x.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def dot(a, b, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """a b, summed in float32, on mma instructions.

    With 64 rows Hopper would get wgmma instead, of which the assemblers that Triton 3.4 to 3.7 bring along make wrong
    code (triton-lang/triton#11781, flash-linear-attention#640). A batch of products of 16 rows keeps it away.
    """
    a, b = a.to(OPERAND), b.to(OPERAND)
    if a.shape[0] < 64:
        return tl.dot(a, b, input_precision=PRECISION)
    else:
        slabs = tl.reshape(a, [a.shape[0] // 16, 16, a.shape[1]])
        again = tl.broadcast_to(b[None, :, :], [a.shape[0] // 16, b.shape[0], b.shape[1]])
        return tl.reshape(tl.dot(slabs, again, input_precision=PRECISION), [a.shape[0], b.shape[1]])


@triton.jit
def inner_products(
    a, b, i, H: tl.constexpr, T, K: tl.constexpr, BT: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr
):
    """a_i · b_j, for the keys or queries of a head."""
    x = tl.zeros([BT, BT], tl.float32)
    for row in range(0, K, 32):
        rows = row + tl.arange(0, 32)
        x += dot(load(a, i, H * K, rows, T, K), tl.trans(load(b, i, H * K, rows, T, K)), OPERAND, PRECISION)
    return x


@triton.jit
def decays(g, i, H: tl.constexpr, T, BT: tl.constexpr):
    """e^{G_i − G_j} for j ≤ i (0 above), e^{G_i}, e^{G_T − G_i} and e^{G_T}; ones without g.

    Sums in float64: after one g = −20 the difference of two float32 sums would have lost the small decays after it.
    """
    causal = i[:, None] >= i[None, :]
    if g is None:
        one = tl.full([BT], 1.0, tl.float32)
        return tl.where(causal, 1.0, 0.0), one, one, 1.0
    else:
        steps = tl.load(g + i * H, mask=i < T, other=0.0).to(tl.float64)
        G = tl.cumsum(steps, 0)
        end = tl.sum(steps, 0)
        apart = (G[:, None] - G[None, :]).to(tl.float32)
        # Masked before exp: above the diagonal it would overflow.
        between = tl.exp(tl.where(causal, apart, float("-inf")))
        to_end = tl.exp(tl.minimum((end - G).to(tl.float32), 0.0))  # the two sums may differ in their last bit
        return between, tl.exp(G.to(tl.float32)), to_end, tl.exp(end.to(tl.float32))


@triton.jit
def _inverse(A, i, BT: tl.constexpr):
    """(I + A)⁻¹ of a strictly lower triangular A, row by row: row_i = e_i − Σ_{j<i} A_ij row_j.

    Doubling, (I − A)(I + A²)(I + A⁴)…, would need fewer steps, but its powers explode where keys repeat.
    """
    columns = tl.trans(A)
    inverse = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    for row in range(1, BT):
        weights = tl.sum(tl.where(i[None, :] == row, columns, 0.0), 1)
        change = tl.sum(weights[:, None] * inverse, 0)
        inverse = tl.where(i[:, None] == row, inverse - change[None, :], inverse)
    return inverse


@triton.jit(do_not_specialize=["T"])
def forward(
    q,  # None where only the memory is wanted
    k,
    v,
    g,  # or None
    beta,
    start,  # or None
    o,  # None without q
    end,
    inverse,  # None for the hebbian rule
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
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    batch, head = program // H, program % H
    first = batch * T * H + head
    k += first * K
    v += batch * v_batch_stride + head * V
    beta += first
    end += program * K * V
    if q is not None:
        q += first * K
        o += first * V
    if g is not None:
        g += first
    if start is not None:
        start += program * K * V
    if inverse is not None:
        inverse += program * T * T
    i, rows = tl.arange(0, BT), tl.arange(0, BK)
    between, since_start, to_end, whole = decays(g, i, H, T, BT)
    step = tl.load(beta + i * H, mask=i < T, other=0.0).to(tl.float32)

    keys = load(k, i, H * K, rows, T, K).to(OPERAND)
    if inverse is not None:
        P = inner_products(k, k, i, H, T, K, BT, OPERAND, PRECISION) * between
        solved = _inverse(tl.where(i[:, None] > i[None, :], step[:, None] * P, 0.0), i, BT)
        store(inverse, i, T, i, T, T, solved)
        solved = tl.trans(solved).to(OPERAND)
    if q is not None:
        queries = load(q, i, H * K, rows, T, K).to(OPERAND)
        M = tl.trans(scale * between * inner_products(q, k, i, H, T, K, BT, OPERAND, PRECISION)).to(OPERAND)

    for column in range(0, V, BV):
        columns = column + tl.arange(0, BV)
        z = load_transposed(v, i, v_token_stride, columns, T, V)
        S_end = tl.zeros([BV, BK], tl.float32)
        if start is not None:
            S = load_transposed(start, rows, V, columns, K, V)
            S_end = whole * S
            S = S.to(OPERAND)
            if inverse is not None:
                z -= since_start[None, :] * dot(S, tl.trans(keys), OPERAND, PRECISION)
        w = step[None, :] * z
        if inverse is not None:
            w = dot(w, solved, OPERAND, PRECISION)
        if q is not None:
            y = dot(w, M, OPERAND, PRECISION)
            if start is not None:
                y += (scale * since_start)[None, :] * dot(S, tl.trans(queries), OPERAND, PRECISION)
            store_transposed(o, i, H * V, columns, T, V, y)
        S_end += dot(to_end[None, :] * w, keys, OPERAND, PRECISION)
        store_transposed(end, rows, V, columns, K, V, S_end)
