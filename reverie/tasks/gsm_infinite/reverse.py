"""Reverse mode: one number becomes the unknown x, and the value of the last quantity is given instead."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from reverie.tasks.gsm_infinite.core import Core


@dataclass(frozen=True)
class Linear:
    """A value slope · x + constant; slope is 0 if a quantity does not depend on the unknown x."""

    slope: int
    constant: int

    def __add__(self, other: Linear | int) -> Linear:
        other = other if isinstance(other, Linear) else Linear(0, other)
        return Linear(self.slope + other.slope, self.constant + other.constant)

    def __mul__(self, other: Linear | int) -> Linear:
        other = other if isinstance(other, Linear) else Linear(0, other)
        if self.slope and other.slope:
            return NotImplemented  # which Python makes a TypeError
        slope = self.slope * other.constant + other.slope * self.constant
        return Linear(slope, self.constant * other.constant)

    def __sub__(self, other: Linear) -> Linear:
        return self + -1 * other

    __radd__, __rmul__ = __add__, __mul__


def choose_unknown(core: Core) -> bool:
    """Make the last needed quantity that is a plain number the unknown; True if the given value determines it."""
    leaves = [q for q in core.needed if not core.operands(q)]
    core.unknown = leaves[-1]
    last = slopes(core)[core.needed[-1]]
    return last is not None and last.slope != 0


def slopes(core: Core) -> dict[int, Linear | None]:
    """Every needed quantity as slope · x + constant; None if it is not linear in the unknown x."""
    found: dict[int, Linear | None] = {}
    for q in core.needed:
        try:
            found[q] = Linear(1, 0) if q == core.unknown else Linear(0, 0) + core.value(q, found)
        except TypeError:  # a product of two that depend on x, or an operand that is not linear
            found[q] = None
    return found


def choose_decoy(rng: Random, core: Core, max_value: int) -> int | None:
    """Draw a second quantity whose value is given; were there only one, it would show which equation to use.

    It is a total if the needed given quantity is, else an instance. It must neither contain nor depend on anything
    needed, or it would be another way to the answer. None if there is no such quantity.
    """
    touched = dict.fromkeys(core.needed, True)

    def touches(q: int) -> bool:
        if q not in touched:
            touched[q] = any(touches(p) for p in core.operands(q))
        return touched[q]

    totals = bool(core.parts[core.needed[-1]])
    same_kind = [q for q in range(len(core.quantities)) if bool(core.parts[q]) == totals and core.operands(q)]
    fit = [q for q in same_kind if core.values[q] <= max_value and not touches(q)]
    return rng.choice(fit) if fit else None
