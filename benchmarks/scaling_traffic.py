"""What training with sleep sends between processes, and what a pipeline over its passes waits.

Payload: the bytes of a collective's full tensor. Of it, each of R processes sends (R − 1)/R in an all-gather or a
reduce-scatter, and twice that in an all-reduce.
"""

from __future__ import annotations

from math import ceil, prod
from typing import NamedTuple

from reverie.bench.account import FLOAT32, Shapes, Work, block_shapes, count, hidden_matrices, parameter_shapes, runs


class Traffic(NamedTuple):
    """Payload in bytes and number of collectives, of one training step on one process."""

    gathered: int = 0
    scattered: int = 0
    reduced: int = 0
    collectives: int = 0

    def sent(self, ranks: int) -> float:
        """Bytes that a process sends, and receives, in rings."""
        return (self.gathered + self.scattered + 2 * self.reduced) * (ranks - 1) / ranks


def ddp(work: Work) -> Traffic:
    """The gradient once a step, however many windows and passes."""
    return Traffic(reduced=FLOAT32 * count(parameter_shapes(work.model)), collectives=1)


def fsdp(work: Work, ranks: int, *, once: bool = False, gathered: int = FLOAT32) -> Traffic:
    """Every run of a block gathers its parameters, forward and backward, or all do `once`, as reverie does it.

    Gradients, in float32, are scattered once, at the end.

    Args:
        gathered: bytes of an element that is gathered.
    """
    shapes, blocks = parameter_shapes(work.model), range(len(work.model.layers))
    padded = [_padded(block_shapes(shapes, i), ranks) for i in blocks]
    everything = _padded(shapes, ranks)
    uses = [i for run in runs(work) for _ in range(1 + run.trained) for i, _ in run.blocks()]
    uses = list(blocks) if once else uses
    payload = everything + sum(padded[i] for i in uses) - sum(padded)
    return Traffic(gathered * payload, FLOAT32 * everything, 0, len(uses) + len(blocks) + 2)


def muon_exchange(work: Work) -> int:
    """Bytes that all processes send for Muon under FSDP: every matrix to the one that orthogonalises it, and back."""
    return 2 * FLOAT32 * count(hidden_matrices(work.model))


def tensor_parallel(work: Work, element: int) -> Traffic:
    """Two all-reduces of [B, L, D] in a block's forward, after mixer and MLP, and two in its backward.

    A block that only writes its fast weights needs none forward and one backward.
    """
    reductions, again = 0, work.backward.activation_checkpoint
    for run in runs(work):
        for _, output in run.blocks():
            forward, backward = (2, 2) if output else (0, 1)
            repeats = {"none": 0, "pass": 1, "window": 2}[again] if run.trained else 0
            reductions += forward * (1 + repeats) + backward * run.trained
    return Traffic(reduced=reductions * element * work.window_tokens * work.model.width, collectives=reductions)


def context_parallel(work: Work, element: int) -> Traffic:
    """A window's tokens over several processes: keys and values gathered, their gradients scattered.

    Fast weights go from process to process: what a part of the window does to them is a map S → A S + B with A [K, K]
    and B [K, V] a head, and these are gathered.
    """
    model, gathered, scattered, collectives = work.model, 0, 0, 0
    maps = FLOAT32 * work.batch * model.fast_heads * model.key_size * (model.key_size + model.value_size)
    keys = element * work.window_tokens * 2 * model.kv_heads * model.head_size
    for run in runs(work):
        for i, _ in run.blocks():
            payload = keys if model.layers[i] == "attn" else maps
            gathered += payload * (2 if run.trained else 1)
            scattered += payload if run.trained else 0
            collectives += 3 if run.trained else 1
    return Traffic(gathered, scattered, 0, collectives)


def pipeline_slots(stages: int, microbatches: int, trips: int) -> int:
    """Time of a ring of stages, in units of one microbatch at one stage.

    Every microbatch goes round `trips` times, a trip for each window and pass: a trip begins when the one before has
    left the last stage, and fast weights stay where they are. With at least as many microbatches as stages nobody
    waits but at the start and the end.
    """
    return max(stages, microbatches) * trips + min(stages, microbatches) - 1


def _padded(shapes: Shapes, ranks: int) -> int:
    """Elements, with rows filled up so that every process has as many."""
    return sum(ceil(shape[0] / ranks) * ranks * prod(shape[1:]) for shape in shapes.values())
