"""A token awake on a GPU as a CUDA graph: recorded once, and replayed without the CPU starting each of its kernels.

A recorded graph reads and writes tensors that stay where they are. What a context holds is copied there, and what is
made is copied from there, so contexts never change; parameters are read where the model has them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from reverie.model.awake import AwakeGraph, Made, empty_state
from reverie.model.hybrid import HybridLM
from reverie.model.state import ConvTail, KVCache

Compute = Callable[[], Made]
Record = Callable[[Compute], Compute]
"""Of a computation: does it again each time it is called, into the same tensors."""

_WARM_UP = 3


class Recorded:
    """`AwakeGraph.forward` of a model, recorded.

    Args:
        places: tokens that a cache may hold.
    """

    def __init__(self, model: HybridLM, graph: AwakeGraph, places: int, batch_size: int, record: Record) -> None:
        with torch.inference_mode(False), torch.no_grad():
            empty = empty_state(model, batch_size)
            device = next(model.parameters()).device
            tokens = torch.zeros(batch_size, 1, dtype=torch.long, device=device)
            self._place = torch.zeros(1, dtype=torch.long, device=device)
            fast_weights = [x for x in empty.fast_weights if x is not None]
            entries = cast(tuple[Any, ...], empty.cache)
            tails = [entry.x for entry in entries if isinstance(entry, ConvTail)]
            cached = [x for entry in entries if isinstance(entry, KVCache) for x in (entry.k, entry.v)]
            self._buffers = [x.new_zeros(len(x), places, *x.shape[2:]) for x in cached]
            self._inputs = [tokens, *fast_weights, *tails]
            given = (tokens, self._place[0], fast_weights, tails, self._buffers)
            parameters = [parameter.detach() for parameter in model.parameters()]
            self._again = record(lambda: graph(parameters, *given))
        self._lock = threading.Lock()

    def __call__(
        self,
        parameters: list[Tensor],  # those that were recorded
        tokens: Tensor,
        place: Tensor,
        fast_weights: list[Tensor],
        tails: list[Tensor],
        buffers: list[Tensor],
    ) -> Made:
        with self._lock:
            self._place.copy_(place)
            for held, x in zip(self._inputs, (tokens, *fast_weights, *tails), strict=True):
                held.copy_(x)
            for held, x in zip(self._buffers, buffers, strict=True):
                held[:, : x.shape[1]].copy_(x)
                held[:, x.shape[1] :].zero_()  # what is masked must be numbers, too, and not those of another text
            logits, hs, states, new_tails = self._again()
            for held, x in zip(self._buffers, buffers, strict=True):
                x.index_copy_(1, self._place, held.index_select(1, self._place))
            return logits.clone(), hs.clone(), [x.clone() for x in states], [x.clone() for x in new_tails]


def cuda_graph(compute: Compute) -> Compute:
    """Record a computation on the current device."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad():
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):  # kernels are compiled and chosen, and tables of positions made
                compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            made = compute()

    def replay() -> Made:
        graph.replay()
        return made

    return replay
