"""Reverse mode: one number becomes the unknown x, and the value of the last quantity is given instead."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from reverie.tasks.gsm_infinite.core import Core, evaluate


class Linear(NamedTuple):
    """A value slope · x + constant; slope is 0 if a quantity does not depend on the unknown x."""

    slope: int
    constant: int


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
        found[q] = Linear(1, 0) if q == core.unknown else _combine(core, q, [found[p] for p in core.operands(q)])
    return found


def _combine(core: Core, quantity: int, operands: list[Linear | None]) -> Linear | None:
    """A quantity's value from those of its operands; None if not linear."""
    terms = [term for term in operands if term is not None]
    if len(terms) < len(operands):
        return None
    if core.quantities[quantity].kind == "weighted total":
        pairs = list(zip(terms[::2], terms[1::2], strict=True))
        if any(n.slope and a.slope for n, a in pairs):
            return None
        return Linear(
            sum(n.slope * a.constant + a.slope * n.constant for n, a in pairs),
            sum(n.constant * a.constant for n, a in pairs),
        )
    if core.parts[quantity]:
        return Linear(sum(t.slope for t in terms), sum(t.constant for t in terms))
    fact = core.facts[quantity]
    slope = evaluate(fact._replace(constant=None), [t.slope for t in terms]) if terms else 0
    slope *= fact.constant if fact.times and fact.constant is not None else 1
    return Linear(slope, evaluate(fact, [t.constant for t in terms]))


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
