"""Blocks of transformers through `torch.compile`: a block as a function of h and of what it has cached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reverie.hf.state import LayerCache


class Attended(NamedTuple):
    """What a block returns, and its keys and values afterwards."""

    output: Any
    k: Float[Tensor, "B H T d"]
    v: Float[Tensor, "B H T d"]


Attend = Callable[[nn.Module, Tensor, Tensor | None, Tensor | None, Mapping[str, Any]], Attended]


def _attend(layer: nn.Module, h: Tensor, k: Tensor | None, v: Tensor | None, kwargs: Mapping[str, Any]) -> Attended:
    """A block of transformers as a function of h and of the keys and values cached before; None where there are none.

    All blocks share one compiled form of this, so nothing in it may depend on which block it is.
    """
    cache = _OneLayer(k, v)
    output = layer.stock.forward(layer, h, **kwargs, past_key_values=cache)  # pyright: ignore[reportAttributeAccessIssue]
    assert cache.entry.k is not None
    assert cache.entry.v is not None
    return Attended(output, cache.entry.k, cache.entry.v)


def compiled_attend(backend: str, layers: nn.ModuleList) -> Attend:
    """`_attend`, compiled for these blocks: a handful of kernels for each where it was about fifty."""
    for layer in layers:
        for module in layer.modules():
            # Their place in a cache, by which they would differ from each other; `_OneLayer` does not ask for it.
            if isinstance(getattr(module, "layer_idx", None), int):
                cast(Any, module).layer_idx = 0
    return torch.compile(_attend, backend=backend, dynamic=False)


class _OneLayer:
    """As much of transformers' `Cache` as attention asks for."""

    def __init__(self, k: Tensor | None, v: Tensor | None) -> None:
        self.entry = LayerCache(k, v)

    def update(self, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor | None, Tensor | None]:
        self.entry = self.entry.with_more(k, v, 1)  # of fixed shapes: it is never written in place
        return self.entry.k, self.entry.v
