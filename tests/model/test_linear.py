"""`linear` is a call of the layer, whatever the layer has become."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from reverie.model.linear import linear


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def _with_forward(layer: nn.Linear) -> None:
    layer.forward = lambda x: -x  # pyright: ignore[reportAttributeAccessIssue]


def _as_a_replica(layer: Any) -> None:
    """As DataParallel leaves one."""
    layer._parameters = {}
    vars(layer)["weight"], vars(layer)["bias"] = torch.ones(4, 4), None


CHANGES: dict[str, Callable[[Any], object]] = {
    "nothing": lambda _: None,
    "in place": lambda layer: layer.weight.mul_(2),
    "through data": lambda layer: layer.weight.data.mul_(2),
    "other data": lambda layer: setattr(layer.weight, "data", layer.weight.data + 1),
    "another parameter": lambda layer: setattr(layer, "weight", nn.Parameter(torch.ones(4, 4))),
    "no bias": lambda layer: setattr(layer, "bias", None),
    "a hook": lambda layer: layer.register_forward_hook(lambda *_: torch.zeros(1)),
    "a hook before": lambda layer: layer.register_forward_pre_hook(lambda _, inputs: (inputs[0] + 1,)),
    "a class of its own": lambda layer: setattr(layer, "__class__", Doubled),
    "a forward of its own": _with_forward,
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    "parametrised": lambda layer: parametrizations.weight_norm(layer),
    "a replica": _as_a_replica,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_the_same_as_a_call_of_the_layer(change: Callable[[Any], object]) -> None:
    layer, x = nn.Linear(4, 4), torch.randn(2, 1, 4)
    before = linear(layer, x)
    assert torch.equal(before, layer(x))
    change(layer)
    assert torch.equal(linear(layer, x), layer(x))


@torch.no_grad()
def test_hooks_of_all_modules_are_called() -> None:
    layer, seen = nn.Linear(4, 4), list[nn.Module]()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        linear(layer, torch.ones(1, 4))
    finally:
        handle.remove()
    assert seen == [layer]


def test_gradients_and_hooks_of_the_backward_pass() -> None:
    layer, seen = nn.Linear(4, 4), list[nn.Module]()
    layer.register_full_backward_hook(lambda module, *_: seen.append(module))
    linear(layer, torch.ones(1, 4, requires_grad=True)).sum().backward()
    assert layer.weight.grad is not None
    assert seen == [layer]


def test_a_weight_that_is_made_of_another_parameter() -> None:
    """Two parameters, as in any linear layer, but not its own two."""
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 4), torch.randn(1, 1, 3)
    raw = layer.weight
    del layer.weight
    layer.weight_raw = raw
    layer.weight = raw.data * 2  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        assert torch.equal(linear(layer, x), layer(x))
