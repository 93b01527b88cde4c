"""`Core`: a problem in numbers, without text. Its quantities, a fact for each, and which of them the answer needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from reverie.tasks.gsm_infinite.worlds import World

Level = Literal["medium", "hard"]
Mode = Literal["forward", "reverse"]


class Quantity(NamedTuple):
    """A count or average of one type in one place, or a total of one place (without type)."""

    kind: Literal["count", "average", "total", "weighted total"]
    place: str
    type: str | None = None


class Fact(NamedTuple):
    """Right-hand side of a fact: `constant` [plus | times] (operand | sum | difference of operands).

    Operands are indices of quantities.
    """

    constant: int | None
    times: bool
    difference: bool
    operands: tuple[int, ...]

    @property
    def operations(self) -> int:
        """Number of operands, the constant being one."""
        return len(self.operands) + (self.constant is not None)


@dataclass
class Core:
    """A problem in numbers. Quantities are indices into `quantities`: counts, then averages, then totals.

    `parts` of a total are its counts, those of a weighted total count, average, count, average, …; else ().
    `needed` is in dependency order; its last quantity is asked for (forward) or given (reverse).
    """

    world: World
    level: Level
    mode: Mode
    quantities: list[Quantity]
    parts: list[tuple[int, ...]]
    needed: list[int] = field(default_factory=list)
    facts: dict[int, Fact] = field(default_factory=dict)  # of every instance, which is a count or an average
    values: dict[int, int] = field(default_factory=dict)
    unknown: int | None = None  # reverse mode: the instance asked for
    decoy: int | None = None  # reverse mode: another given quantity, which does not depend on the unknown

    @property
    def asked(self) -> int:
        """The quantity that the question asks for."""
        return self.needed[-1] if self.unknown is None else self.unknown

    @property
    def instances(self) -> range:
        """Counts and averages."""
        return range(sum(not parts for parts in self.parts))

    def operands(self, quantity: int) -> tuple[int, ...]:
        """Quantities that a quantity is computed from."""
        return self.parts[quantity] or self.facts[quantity].operands

    def operations(self, quantity: int) -> int:
        """Number of operands of a quantity, its constant being one."""
        return len(self.parts[quantity]) or self.facts[quantity].operations

    def value(self, quantity: int, values: Mapping[int, Any] | None = None) -> Any:
        """Value of a quantity from those of its operands: `values`, which are `self.values` if absent.

        They may be anything that adds and multiplies.
        """
        operands = [(self.values if values is None else values)[q] for q in self.operands(quantity)]
        if not self.parts[quantity]:
            return evaluate(self.facts[quantity], operands)
        if self.quantities[quantity].kind == "total":
            return sum(operands)
        return sum(n * a for n, a in zip(operands[::2], operands[1::2], strict=True))


def evaluate(fact: Fact, operands: list[Any]) -> Any:
    """The value of a fact's right-hand side."""
    if not operands:
        assert fact.constant is not None
        return fact.constant
    body = operands[0] - operands[1] if fact.difference else sum(operands)
    if fact.constant is None:
        return body
    return fact.constant * body if fact.times else fact.constant + body
