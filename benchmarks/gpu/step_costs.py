"""A training step as block runs: the fewest bytes it can move, and all its kernels when they are fused.

Numbers of bytes per element: `element` is that of matrix products and of all between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import fused_blocks
from fused_blocks import Kernel
from scaling_formulas import (
    FLOAT32,
    NEWTON_SCHULZ_STEPS,
    Run,
    Work,
    again_bytes,
    all_shapes,
    block_shapes,
    count,
    hidden_matrices,
    kept_bytes,
    runs,
)

BFLOAT16 = 2  # bytes
ADAMW_LAUNCHES, CLIP_LAUNCHES = 14, 6  # roughly


class Bytes(NamedTuple):
    """The fewest of one step."""

    forward: float
    backward: float
    optimizers: float

    @property
    def total(self) -> float:
        return sum(self)


class BlockRun(NamedTuple):
    """One block of a `Run`."""

    run: Run
    kind: str
    output: bool
    found: bool  # fast weights to start from
    again: bool  # its parameters have had a gradient in this step already


def block_runs(work: Work) -> Iterator[BlockRun]:
    """All of a step, in order."""
    written, trained = set[int](), set[int]()
    for run in runs(work):
        for i, output in run.blocks():
            yield BlockRun(run, work.model.layers[i], output, i in written, i in trained)
            written.add(i)
            trained |= {i} if run.trained else set()


def fewest_bytes(work: Work, element: int) -> Bytes:
    """Forward, backward and optimisers; what is made again under activation checkpointing is not counted.

    A block run reads h, fast weights and parameters, and writes h and fast weights; if it is trained, also what the
    backward needs. The backward reads these again with the gradients of h and fast weights, writes theirs, and adds to
    the gradients of the parameters, which are float32.
    """
    forward = backward = 0.0
    for each in block_runs(work):
        stream = FLOAT32 * work.batch * work.length(each.run.window) * work.model.width
        S = 0 if each.kind == "attn" else _memory(work)
        weights = sum(kernel.weights for kernel in _kernels(work, each, element))
        kept = _kept(work, each, element) if each.run.trained else 0
        forward += stream * (1 + each.output) + S * (each.found + 1) + weights + kept
        if each.run.trained:
            backward += kept + stream * (1 + each.output) + S * (2 * each.found + 1) + weights
            backward += FLOAT32 / element * weights * (1 + each.again)
    return Bytes(forward, backward, optimizer_bytes_moved(work))


def all_kernels(work: Work, element: int) -> Iterator[Kernel]:
    """Of all block runs, forward and backward, and the sums of parameters' gradients over runs."""
    for each in block_runs(work):
        kernels = _kernels(work, each, element)
        yield from kernels
        if not each.run.trained:
            continue
        if work.backward.activation_checkpoint != "none":
            yield from kernels
        for kernel in reversed(kernels):
            yield from kernel.backward()
        if each.again:
            shapes = block_shapes(work.model, each.kind)
            bytes_ = FLOAT32 * count(shapes)
            yield Kernel("elementwise", 0, 2 * bytes_, bytes_, launches=len(shapes))


def _kernels(work: Work, each: BlockRun, element: int) -> list[Kernel]:
    T = work.length(each.run.window)
    return fused_blocks.forward(work.model, each.kind, work.batch, T, element, output=each.output, found=each.found)


def _kept(work: Work, each: BlockRun, element: int) -> float:
    """What the backward needs of a block run but fast weights: its h, and what products, attention and rule made."""
    stream = FLOAT32 * work.batch * work.length(each.run.window) * work.model.width
    made = sum(
        kernel.written - (_memory(work) if kernel.kind == "rule" else 0)
        for kernel in _kernels(work, each, element)
        if kernel.kept
    )
    return stream + made


def _memory(work: Work) -> int:
    """Bytes of a block's fast weights."""
    return FLOAT32 * work.batch * work.model.fast_heads * work.model.key_size * work.model.value_size


def fused_kept_bytes(work: Work, element: int) -> float:
    """Alive at most for the backward; under activation checkpointing the formulas' share of what it is without."""
    runs_kept = sum(
        _kept(work, each, element) + _memory(work) * (each.kind != "attn")
        for each in block_runs(work)
        if each.run.trained
    )
    if work.backward.activation_checkpoint == "none":
        return runs_kept
    whole = work._replace(backward=work.backward.model_copy(update={"activation_checkpoint": "none"}))
    return runs_kept * (kept_bytes(work) + again_bytes(work)) / kept_bytes(whole)


def optimizer_bytes_moved(work: Work) -> float:
    """Clipping reads gradients twice and writes them; Muon and AdamW read and write parameter and momenta.

    Newton–Schulz reads its bfloat16 matrix twice in every iteration, and writes it.
    """
    shapes = all_shapes(work.model)
    muon = count(hidden_matrices(shapes))
    rest = count(shapes) - muon
    clipping, newton_schulz = 3 * FLOAT32 * (muon + rest), NEWTON_SCHULZ_STEPS * 3 * BFLOAT16 * muon
    return clipping + newton_schulz + FLOAT32 * (5 * muon + 7 * rest)


def optimizer_launches(work: Work) -> int:
    """Muon takes matrices of one shape together: three products an iteration, and what is around them."""
    groups = len(set(hidden_matrices(all_shapes(work.model)).values()))
    return groups * (3 * NEWTON_SCHULZ_STEPS + 10) + ADAMW_LAUNCHES + CLIP_LAUNCHES
