"""Random inputs of the update rules, and everything that comes out of one call, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from reverie.ops import delta_rule, gated_delta_rule, hebbian_rule

Rule = Callable[..., tuple[Any, Tensor]]
RULES: dict[str, Rule] = {"hebbian": hebbian_rule, "delta": delta_rule, "gated_delta": gated_delta_rule}


class Inputs(NamedTuple):
    q: Any  # Tensor or None
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor
    initial_state: Any  # Tensor or None

    def cut(self, start: int, stop: int) -> Inputs:
        """The tokens start … stop − 1, without an initial state."""
        cut: list[Any] = [None if x is None else x[:, start:stop] for x in self[:5]]
        return Inputs(*cut, initial_state=None)


def random_inputs(
    T: int, *, B: int = 2, H: int = 2, K: int = 3, V: int = 5, state: bool = True, dtype: torch.dtype = torch.float64
) -> Inputs:
    """Keys of norm 1, decays and step sizes all over (0, 1)."""
    random = torch.Generator().manual_seed(T)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    return Inputs(
        q=normal(B, T, H, K).to(dtype),
        k=F.normalize(normal(B, T, H, K), dim=-1).to(dtype),
        v=normal(B, T, H, V).to(dtype),
        g=-F.softplus(normal(B, T, H)).to(dtype),
        beta=normal(B, T, H).sigmoid().to(dtype),
        initial_state=normal(B, H, K, V).to(dtype) if state else None,
    )


def call(rule: Rule, inputs: Inputs, **options: Any) -> tuple[Any, Tensor]:
    q, k, v, g, beta, initial_state = inputs
    return rule(q, k, v, g, beta, initial_state=initial_state, **options)


def outcome(rule: Rule, inputs: Inputs, **options: Any) -> dict[str, Tensor | None]:
    """o, the final state, and the gradients of every input under a random cotangent."""
    copies: list[Any] = [None if x is None else x.detach().clone().requires_grad_() for x in inputs]
    leaves = Inputs(*copies)
    o, S = call(rule, leaves, **options)
    random = torch.Generator().manual_seed(0)
    loss = (S * torch.randn(S.shape, generator=random, dtype=torch.float64)).sum()
    if o is not None:
        loss = loss + (o * torch.randn(o.shape, generator=random, dtype=torch.float64)).sum()
    given = {name: x for name, x in leaves._asdict().items() if x is not None}
    gradients = torch.autograd.grad(loss, list(given.values()), allow_unused=True)
    return {"o": o, "S": S} | {f"d{name}": gradient for name, gradient in zip(given, gradients, strict=True)}


def assert_same(got: dict[str, Tensor | None], wanted: dict[str, Tensor | None], tolerance: float) -> None:
    assert got.keys() == wanted.keys()
    for name, x in wanted.items():
        y = got[name]
        if x is None or y is None:
            assert x is y, name
            continue
        assert y.dtype == x.dtype, name
        torch.testing.assert_close(y, x, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")
