"""Checks that come before any measurement: a wrong result never gets a number beside it."""

import torch
from torch import Tensor

from reverie.errors import UserError
from reverie.model import HybridConfig, HybridLM, new_model

SEED = 0  # of models, data and inputs in all benchmarks


def require_equal(got: Tensor, wanted: Tensor, tolerance: float, what: str) -> float:
    """The largest difference, as a share of the largest entry of `wanted`.

    Raises:
        UserError: that is more than `tolerance`, or not a number.
    """
    got, wanted = got.detach(), wanted.detach()
    difference = ((got - wanted).abs().max() / wanted.abs().max()).item()
    if not difference <= tolerance:
        raise UserError(
            f"nothing is measured: {what} is off by {difference:.1e} of its largest entry, where {tolerance:.0e} is "
            "allowed"
        )
    return difference


def random_model(config: HybridConfig, seed: int = SEED) -> HybridLM:
    """A model in which all parameters matter: the blocks of a new one are the identity, and its head is zero."""
    model = new_model(config, seed)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=random))
    return model


def gradients_of(model: HybridLM) -> dict[str, Tensor]:
    """Gradients by the parameter's name, where there is one."""
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def require_equal_gradients(got: HybridLM, wanted: HybridLM, tolerance: float, what: str) -> None:
    """Raises UserError where a gradient differs, or is missing on one side."""
    mine, theirs = gradients_of(got), gradients_of(wanted)
    if odd := sorted(mine.keys() ^ theirs.keys()):
        raise UserError(f"nothing is measured: {what}, {odd[0]} has a gradient on one side alone")
    for name, gradient in theirs.items():
        require_equal(mine[name], gradient, tolerance, f"{what}, the gradient of {name}")
