"""What training with sleep sends between processes in a step, as payloads: the bytes of a collective's full tensor.

Of it, each of R processes sends (R − 1)/R in an all-gather or a reduce-scatter, and twice that in an all-reduce.
"""

from __future__ import annotations

from math import ceil, prod

from reverie.bench.account import FLOAT32, Shapes, Work, block_shapes, count, hidden_matrices, parameter_shapes, runs


def ddp(work: Work) -> int:
    """Bytes reduced: the gradient once a step, however many windows and passes."""
    return FLOAT32 * count(parameter_shapes(work.model))


def fsdp(work: Work, ranks: int, *, once: bool = False, gathered: int = FLOAT32) -> tuple[int, int]:
    """Bytes gathered and scattered; gradients, in float32, are scattered once, at the end.

    Args:
        once: all parameters are gathered once, as reverie does it; else those of a block for each of its runs, forward
            and backward.
        gathered: bytes of an element that is gathered.
    """
    shapes, blocks = parameter_shapes(work.model), range(len(work.model.layers))
    padded = [_padded(block_shapes(shapes, i), ranks) for i in blocks]
    everything = _padded(shapes, ranks)
    uses = [i for run in runs(work) for _ in range(1 + run.trained) for i, _ in run.blocks()]
    payload = everything if once else everything - sum(padded) + sum(padded[i] for i in uses)
    return gathered * payload, FLOAT32 * everything


def muon_exchange(work: Work) -> int:
    """Bytes that all processes send for Muon under FSDP: every matrix to the one that orthogonalises it, and back."""
    return 2 * FLOAT32 * count(hidden_matrices(work.model))


def tensor_parallel(work: Work, element: int) -> int:
    """Bytes reduced: [B, L, D] twice in a block's forward, after mixer and MLP, and twice in its backward.

    A block that only writes its fast weights needs none forward and one backward.
    """
    reductions, again = 0, work.backward.activation_checkpoint
    for run in runs(work):
        for _, output in run.blocks():
            forward, backward = (2, 2) if output else (0, 1)
            repeats = {"none": 0, "pass": 1, "window": 2}[again] if run.trained else 0
            reductions += forward * (1 + repeats) + backward * run.trained
    return reductions * element * work.window_tokens * work.model.width


def _padded(shapes: Shapes, ranks: int) -> int:
    """Elements, with rows filled up so that every process has as many."""
    return sum(ceil(shape[0] / ranks) * ranks * prod(shape[1:]) for shape in shapes.values())
