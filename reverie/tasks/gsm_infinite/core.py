"""The numbers behind a problem: its quantities, which of them the answer needs, and a fact for each. No text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from reverie.tasks.gsm_infinite.worlds import World

Level = Literal["medium", "hard"]
Mode = Literal["forward", "reverse"]


class Quantity(NamedTuple):
    """A count or an average of one type in one place, or a total of one place (then without type)."""

    kind: Literal["count", "average", "total", "weighted total"]
    place: str
    type: str | None = None


class Fact(NamedTuple):
    """`constant` [`plus` | `times`] ( operand | sum | difference of operands ); quantities by index."""

    constant: int | None
    times: bool
    difference: bool
    operands: tuple[int, ...]

    @property
    def operations(self) -> int:
        return len(self.operands) + (self.constant is not None)


@dataclass
class Core:
    """A problem in numbers. Quantities are indices: instances (counts, then averages) first, then totals."""

    world: World
    level: Level
    mode: Mode
    quantities: list[Quantity]
    parts: list[tuple[int, ...]]  # of a total: the counts; of a weighted one: count, average, count, average, …
    needed: list[int] = field(default_factory=list)  # in dependency order; the last one is asked, or given in reverse
    facts: dict[int, Fact] = field(default_factory=dict)  # of every instance
    values: dict[int, int] = field(default_factory=dict)
    unknown: int | None = None  # reverse: the instance that is asked for
    decoy: int | None = None  # reverse: another quantity whose number is given; it does not depend on the unknown

    @property
    def asked(self) -> int:
        return self.needed[-1] if self.unknown is None else self.unknown

    @property
    def instances(self) -> range:
        return range(sum(not parts for parts in self.parts))

    def operands(self, quantity: int) -> tuple[int, ...]:
        """What a quantity is computed from."""
        return self.parts[quantity] or self.facts[quantity].operands

    def operations(self, quantity: int) -> int:
        """Incoming edges of one quantity; a number counts as one."""
        return len(self.parts[quantity]) or self.facts[quantity].operations

    def value(self, quantity: int) -> int:
        """By what it is computed from, whose values must be known."""
        at = self.values
        parts = self.parts[quantity]
        if not parts:
            return evaluate(self.facts[quantity], [at[q] for q in self.facts[quantity].operands])
        if self.quantities[quantity].kind == "total":
            return sum(at[q] for q in parts)
        return sum(at[n] * at[a] for n, a in zip(parts[::2], parts[1::2], strict=True))


def evaluate(fact: Fact, operands: list[int]) -> int:
    """The value of a fact's right-hand side."""
    if not operands:
        assert fact.constant is not None
        return fact.constant
    body = operands[0] - operands[1] if fact.difference else sum(operands)
    if fact.constant is None:
        return body
    return fact.constant * body if fact.times else fact.constant + body
