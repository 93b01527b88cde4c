"""The kernels of a block as it could run at best: its matrix products, attention and the update rule, and one kernel
for everything elementwise between two of them.

Each reads its inputs and writes its outputs once. That is what `torch.compile` comes to, with `reverie.ops.triton` for
the rule. The residual stream h and fast weights are float32, all else is in the format of the products.

Shapes: n = B · T tokens of a window, D width, H heads, K key size, V value size, M inner width of the MLP.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Literal, NamedTuple

from scaling_formulas import CHUNK, FLOAT32, has_mlp

from reverie.model import HybridConfig

ONE_KERNEL = 64  # tokens that the rule takes in one kernel; longer windows are for flash-linear-attention
MORE_LAUNCHES = (6, 9)  # than one in flash-linear-attention, forward and backward


class Kernel(NamedTuple):
    """Operations and bytes of one launch, or of several that are alike."""

    kind: Literal["product", "attention", "rule", "elementwise"]
    operations: int
    read: float  # bytes of activations and fast weights
    written: float
    weights: float = 0
    kept: bool = False  # what it writes is needed in the backward
    launches: int = 1

    @property
    def bytes(self) -> float:
        return self.read + self.written + self.weights

    def backward(self) -> Iterator[Kernel]:
        """Gradients of what it wrote are read, those of what it read are written."""
        if self.kind == "product":
            yield self._replace(read=self.written, written=self.read)
            yield self._replace(read=self.read + self.written, written=0)  # of the weights
            return
        again = {"attention": (5, 2), "rule": (7, 3), "elementwise": (1, 1)}[self.kind]
        launches = MORE_LAUNCHES[1] if self.launches == MORE_LAUNCHES[0] else self.launches
        yield self._replace(
            operations=self.operations * again[0] // again[1],
            read=self.read + self.written * (2 if self.kind == "attention" else 1),
            written=self.read,
            launches=launches,
        )


class _Block(NamedTuple):
    model: HybridConfig
    batch: int
    T: int
    element: int  # bytes

    def product(self, rows: int, columns: int, *, kept: bool = True) -> Kernel:
        """x [n, rows] times a matrix [rows, columns]."""
        n, e = self.batch * self.T, self.element
        return Kernel("product", 2 * n * rows * columns, e * n * rows, e * n * columns, e * rows * columns, kept)

    def elementwise(self, read: float, written: float, h: int = 0) -> Kernel:
        """Numbers a token; `h` says how often the residual stream is read and written."""
        n, e, D = self.batch * self.T, self.element, self.model.width
        stream = FLOAT32 * n * D
        return Kernel("elementwise", 0, n * e * read + stream * min(h, 1), n * e * written + stream * max(h - 1, 0))

    def attention(self) -> Kernel:
        n, e, D, T = self.batch * self.T, self.element, self.model.width, self.T
        keys = 2 * self.model.kv_heads * self.model.head_size
        return Kernel("attention", 4 * n * D * T, e * n * (D + keys), e * n * D, kept=True)

    def rule(self, output: bool, found: bool) -> list[Kernel]:
        """As `triton_kernels.py` counts it; of longer windows in chunks the intermediates go through memory as well."""
        T, e, K, V = self.T, self.element, self.model.key_size, self.model.value_size
        heads, C = self.batch * self.model.fast_heads, min(CHUNK, T)
        read = e * T * (K + V + K * output) + FLOAT32 * (2 * T + K * V * found)
        written = e * T * V * output + FLOAT32 * (T * C + K * V)
        products = 2 * K * V + K * C + C * V + (K * V + K * C + C * V) * output
        one = Kernel("rule", heads * 2 * T * products, heads * read, heads * written, kept=True)
        if T <= ONE_KERNEL:
            return [one]
        # k and v as they are written, v as it is left, two triangles, S of every chunk
        between = heads * e * (T * (K + 2 * V + 2 * C) + ceil(T / C) * K * V)
        return [one, Kernel("rule", 0, between, between, launches=MORE_LAUNCHES[0])]


def forward(
    model: HybridConfig, kind: str, batch: int, T: int, element: int, *, output: bool, found: bool
) -> list[Kernel]:
    """A block over T tokens of B texts.

    Args:
        element: bytes of a number in matrix products.
        output: without it the block writes its fast weights and stops.
        found: whether there are fast weights to start from.
    """
    block, D, M = _Block(model, batch, T, element), model.width, model.mlp_width
    mixer = _attention(block, output) if kind == "attn" else _fast_weights(block, kind, output, found)
    if not output:
        return mixer
    added = block.elementwise(D, 0, h=2)
    if not has_mlp(kind):
        return [*mixer, added]
    return [
        *mixer,
        block.elementwise(D, D, h=2),  # residual and norm
        block.product(D, 2 * M),
        block.elementwise(2 * M, M),
        block.product(M, D, kept=False),
        added,
    ]


def _attention(block: _Block, output: bool) -> list[Kernel]:
    model, D = block.model, block.model.width
    keys = model.kv_heads * model.head_size
    kernels = [
        block.elementwise(0, D, h=1),  # norm
        block.product(D, D + 2 * keys),
        block.elementwise(D + keys, D + keys),  # norm and turn
    ]
    return [*kernels, block.attention(), block.product(D, D, kept=False)] if output else kernels


def _fast_weights(block: _Block, kind: str, output: bool, found: bool) -> list[Kernel]:
    model, D = block.model, block.model.width
    HK, HV, H = model.fast_heads * model.key_size, model.fast_heads * model.value_size, model.fast_heads
    qkv, taps, hidden = 2 * HK + HV, 0, max(HV // 8, 1)
    kernels = [block.elementwise(0, D, h=1), block.product(D, qkv), block.product(D, 2 * H)]
    if kind != "gdn":
        taps = model.conv_size * HV
        kernels += [block.product(D, hidden), block.elementwise(hidden, hidden), block.product(hidden, taps)]
    kernels += [block.elementwise(qkv + taps + 2 * H, qkv + 2 * H), *block.rule(output, found)]
    if output:
        kernels += [block.product(D, HV), block.elementwise(2 * HV, HV), block.product(HV, D, kept=False)]
    return kernels
