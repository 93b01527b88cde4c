"""Worked solutions: one entry for every needed quantity, in dependency order."""

from collections.abc import Iterator
from operator import add, mul, sub
from random import Random
from string import ascii_letters
from typing import NamedTuple

from reverie.tasks.gsm_infinite.core import Core
from reverie.tasks.gsm_infinite.reverse import Linear, slopes
from reverie.tasks.gsm_infinite.text import name

_OPERATORS = {"+": add, "-": sub, "*": mul}


class Term(NamedTuple):
    """A symbol or expression and its value, in reverse mode linear in x."""

    symbol: str
    value: Linear


class Steps(NamedTuple):
    """A first term, then operators (+, -, *) and terms, applied from left to right."""

    first: Term
    others: list[tuple[str, Term]]


def solution(core: Core, rng: Random) -> str:
    """The worked solution as text, ending in "Answer: n."; in reverse mode it solves an equation in x at the end."""
    names = [letter for letter in ascii_letters if core.unknown is None or letter not in "Xx"]
    rng.shuffle(names)  # more of them than a problem can have steps
    letters = iter(names)
    values = {q: value for q, value in slopes(core).items() if value is not None}
    terms: dict[int, Term] = {}
    entries = [] if core.unknown is None else ["One quantity is unknown, so we set up an equation and solve it."]
    for q in core.needed:
        called = name(core.quantities[q], core.world)
        if q == core.unknown:
            terms[q] = Term("x", values[q])
            entries.append(f"Define {called} as x; we do not know its value yet and will find it later.")
        else:
            terms[q] = Term(next(letters), values[q])
            entries.append(f"Define {called} as {terms[q].symbol}; {_work(_steps(core, q, terms), terms[q], letters)}.")
    if core.unknown is not None:
        last = core.needed[-1]
        entries.append(_equation(terms[last], core.values[last]))
    return " ".join([*entries, f"Answer: {core.values[core.asked]}."])


def _steps(core: Core, quantity: int, terms: dict[int, Term]) -> Steps:
    """Steps by which a quantity is computed from the terms of its operands."""
    parts = core.parts[quantity]
    if parts and core.quantities[quantity].kind == "weighted total":
        pairs = [(terms[n], terms[a]) for n, a in zip(parts[::2], parts[1::2], strict=True)]
        if len(pairs) == 1:
            return Steps(pairs[0][0], [("*", pairs[0][1])])
        products = [Term(f"{n.symbol} * {a.symbol}", n.value * a.value) for n, a in pairs]
        return Steps(products[0], [("+", product) for product in products[1:]])
    operands = [terms[q] for q in core.operands(quantity)]
    if parts:
        return Steps(operands[0], [("+", term) for term in operands[1:]])
    fact = core.facts[quantity]
    number = [] if fact.constant is None else [Term(str(fact.constant), Linear(0, fact.constant))]
    if len(operands) < 2:
        first, *others = number + operands
        return Steps(first, [("*" if fact.times else "+", term) for term in others])
    body = [("-" if fact.difference else "+", term) for term in operands[1:]]
    return Steps(operands[0], body + [("*" if fact.times else "+", term) for term in number])


def _work(steps: Steps, target: Term, letters: Iterator[str]) -> str:
    """Steps as text: each combines two terms, and the last one defines the target's symbol."""
    left, lines = steps.first, []
    if not steps.others:
        shown = _show(left.value)
        return f"so {target.symbol} = {left.symbol}" + (f" = {shown}" if shown != left.symbol else "")
    for i, (operator, right) in enumerate(steps.others):
        last = i == len(steps.others) - 1
        result = Term(target.symbol if last else next(letters), _OPERATORS[operator](left.value, right.value))
        names = f"{left.symbol} {operator} {right.symbol}"
        numbers = f"{_operand(left.value, operator)} {operator} {_operand(right.value, operator)}"
        lines.append(f"{'so ' if last else ''}{result.symbol} = {names} = {numbers} = {_show(result.value)}")
        left = result
    return "; ".join(lines)


def _show(value: Linear) -> str:
    """A value as text, such as "2*x + 3"."""
    slope, constant = value.slope, value.constant
    if slope == 0:
        return str(constant)
    term = {1: "x", -1: "-x"}.get(slope, f"{slope}*x")
    return term if constant == 0 else f"{term} {'+' if constant > 0 else '-'} {abs(constant)}"


def _operand(value: Linear, operator: str) -> str:
    """A value as text, in parentheses if the operator needs them."""
    shown = _show(value)
    return shown if operator == "+" or shown == "x" or shown.isdigit() else f"({shown})"


def _equation(left: Term, given: int) -> str:
    """The solution of slope · x + constant = given, as text."""
    slope, constant = left.value.slope, left.value.constant
    lines = [f"We know that {left.symbol} = {given}, so {_show(left.value)} = {given}"]
    if constant:
        lines.append(f"so {_show(Linear(slope, 0))} = {given - constant}")
    if slope != 1:
        lines.append(f"so x = {given - constant} / {slope} = {(given - constant) // slope}")
    return "; ".join(lines) + "."
