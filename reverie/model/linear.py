"""A linear layer awake, without the machinery of module calls, which takes as long as a small product."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as calls

_OWN = {"weight", "bias"}


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`. Calls as a module what is more than a linear layer: an adapter, one with hooks, or with a `forward`
    of its own."""
    own = vars(layer)
    parameters = own["_parameters"]
    if (
        type(layer) is not nn.Linear
        or parameters.keys() != _OWN  # a replica of DataParallel keeps its own elsewhere
        or own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or "forward" in own
        or torch.is_grad_enabled()
        or calls._has_any_global_hook()
    ):
        return layer(x)
    return F.linear(x, parameters["weight"], parameters["bias"])
