"""A decoder's layer as a function of what it reads: h, and keys and values before; so that it can be compiled.

Compiled, a layer is a handful of kernels where it was about fifty. All layers share one compiled form, so nothing in
here may depend on which layer it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Attended(NamedTuple):
    """What a layer returns, and the keys and values behind it."""

    output: Any
    k: Float[Tensor, "B H T d"]
    v: Float[Tensor, "B H T d"]


Attend = Callable[[nn.Module, Tensor, Tensor | None, Tensor | None, Mapping[str, Any]], Attended]


def attend(layer: nn.Module, h: Tensor, k: Tensor | None, v: Tensor | None, kwargs: Mapping[str, Any]) -> Attended:
    """The layer of transformers, as it is without sleep, behind cached keys and values, None where there are none."""
    cache = _OneLayer(k, v)
    output = layer.stock.forward(layer, h, **kwargs, past_key_values=cache)  # pyright: ignore[reportAttributeAccessIssue]
    assert cache.k is not None
    assert cache.v is not None
    return Attended(output, cache.k, cache.v)


def compiled(backend: str, layers: nn.ModuleList) -> Attend:
    """`attend`, compiled for these layers."""
    for layer in layers:
        for module in layer.modules():
            # Their place in a cache, by which they would differ from each other; `_OneLayer` does not ask for it.
            if isinstance(getattr(module, "layer_idx", None), int):
                cast(Any, module).layer_idx = 0
    return torch.compile(attend, backend=backend, dynamic=False)


class _OneLayer:
    """As much of transformers' `Cache` as attention asks for."""

    def __init__(self, k: Tensor | None, v: Tensor | None) -> None:
        self.k, self.v = k, v

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.k is not None and self.v is not None:
            key_states = torch.cat([self.k, key_states], dim=2)
            value_states = torch.cat([self.v, value_states], dim=2)
        self.k, self.v = key_states, value_states
        return key_states, value_states
