"""What a pass of sleep reads: from the second on, the h of the pass before, and what the first pass read. That every
pass sees its input again is what lets recurrent networks run longer than they were trained to (arXiv 2202.05826).

Pass 1 is never touched, so N = 1 is what it was.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reverie.errors import UserError
from reverie.model.fused import rms_norm
from reverie.named import find_named, is_named


class Injection(nn.Module):
    """The base of injections. A class of your own is named module:Class, and is made with the model's width D."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, n: int, h: Float[Tensor, "B T D"], embedded: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """What pass n ≥ 2 reads.

        Args:
            h: what the pass before made of the window.
            embedded: what entered the first looped block in pass 1: the embedded tokens if that is block 0.
        """
        raise NotImplementedError


class Add(Injection):
    """h + embedded."""

    def forward(self, n: int, h: Tensor, embedded: Tensor) -> Tensor:
        return h + embedded


class Gate(Injection):
    """h + gate · embedded, a gate for each token and channel, computed from both; it starts closed."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.gate = nn.Linear(2 * width, width, bias=False)
        self.out = nn.Parameter(torch.zeros(width))

    def forward(self, n: int, h: Tensor, embedded: Tensor) -> Tensor:
        both = torch.cat([rms_norm(h, 1e-6), rms_norm(embedded, 1e-6)], dim=-1)
        return h + self.out * self.gate(both).sigmoid() * embedded


INJECTIONS: dict[str, type[Injection] | None] = {"none": None, "add": Add, "gate": Gate}


def new_injection(name: str, width: int) -> Injection | None:
    """The injection of this name for a model of this width; None for "none".

    Raises:
        UserError: there is none, or it cannot be made.
    """
    found = injection_named(name)
    try:
        return None if found is None else found(width)
    except Exception as error:  # of a class from outside
        raise UserError(f"injection {name} cannot be made: {error}") from error


def injection_named(name: str) -> type[Injection] | None:
    """The class of this name; None for "none".

    Raises:
        UserError: there is none, or it is no `Injection`.
    """
    if name in INJECTIONS:
        return INJECTIONS[name]
    if not is_named(name):
        raise UserError(f"there is no injection {name!r}: use {', '.join(INJECTIONS)}, or module:Class")
    found = find_named(name, "an injection")
    if not (isinstance(found, type) and issubclass(found, Injection)):
        raise UserError(f"injection {name} must be a subclass of reverie.model.Injection")
    return found
