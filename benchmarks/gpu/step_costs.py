"""A training step as block runs: the fewest bytes it can move, its kernels when they are fused, and when they are not.

Numbers of bytes per element: `element` is that of matrix products and of all between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import fused_blocks
import torch
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
from scaling_measured import loss_of
from torch.utils._python_dispatch import TorchDispatchMode

from reverie.model import new_model

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


# Eager code


class _Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A view is an alias that is not written to.
        view = any(out.alias_info and not out.alias_info.is_write for out in func._schema.returns)
        self.number += not view
        return func(*args, **(kwargs or {}))


def eager_launches(work: Work, dtype: Literal["float32", "bfloat16"]) -> int:
    """Kernels of forward and backward of a step on the "chunked" backend.

    Counted on a model of the same blocks, windows and passes, made tiny: the number does not depend on widths or the
    batch. What is counted are operations on a CPU that make or change a tensor; on a GPU some of them are two kernels,
    and some are none.
    """
    tiny = work.model.model_copy(
        update={
            "width": 4,
            "mlp_width": 2,
            "num_heads": 1,
            "num_kv_heads": 1,
            "fast_heads": 1,
            "key_size": 2,
            "value_size": 2,
            "backend": "chunked",
        }
    )
    small = work._replace(model=tiny, batch=1, scored=sum(work.labelled))
    model = new_model(tiny, 0)
    loss_of(small, model)  # rotary tables are made once
    with _Launches() as launches:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = loss_of(small, model)
        loss.backward()
    return launches.number
