"""Padding: facts about other places, computed from core quantities, that no fact of the core uses."""

from collections.abc import Callable, Iterator
from random import Random

from reverie.tasks.gsm_infinite.core import Core, Fact, Quantity
from reverie.tasks.gsm_infinite.text import Pieces, fact_sentence, phrase

Measure = Callable[[str], int]
"""Length of a piece of text in some unit; lengths of adjacent pieces must add up."""

_FEWEST_TYPES, _MOST_TYPES = 20, 40  # per padding place
_MISFITS = 8  # number of sentences too long for the rest, after which padding ends
_TOTAL_AS_OPERAND = 0.1  # share of facts with one operand that get the total of an earlier padding place as second


def padding_sentences(rng: Random, core: Core, at_least: int, at_most: int, measure: Measure) -> list[Pieces]:
    """Draw facts whose lengths sum to `at_least` … `at_most`.

    They sum to less if the vocabulary is exhausted, or no sentence is short enough for the rest.
    """
    sentences, length, misfits = [], 0, 0
    for pieces in _facts(rng, core):
        if length >= at_least or misfits == _MISFITS:
            break
        size = sum(map(measure, pieces))
        if length + size > at_most:
            misfits += 1
            continue
        sentences.append(pieces)
        length += size
    return sentences


def _facts(rng: Random, core: Core) -> Iterator[Pieces]:
    world, hard = core.world, core.level == "hard"
    operands = _operands(core)
    phrases = {q: phrase(core.quantities[q], world) for q in operands}
    earlier: list[tuple[str, int]] = []  # totals of places that are complete: phrase and value, each used once
    for place in rng.sample(world.padding_places, len(world.padding_places)):
        total = 0
        for kind in rng.sample(world.padding_types, rng.randint(_FEWEST_TYPES, _MOST_TYPES)):
            subjects = [Quantity("count", place, kind)] + [Quantity("average", place, kind)] * hard
            values = []
            for subject in subjects:
                several = len(operands) > 1 and rng.random() < 0.5
                drawn = [(phrases[q], core.values[q]) for q in rng.sample(operands, 2 if several else 1)]
                if len(drawn) == 1 and earlier and rng.random() < _TOTAL_AS_OPERAND:
                    drawn.append(earlier.pop())
                fact, names, value = _combine(rng, drawn)
                values.append(value)
                yield fact_sentence(phrase(subject, world), fact, names)
            total += values[0] * values[-1] if hard else values[0]
        earlier.append((phrase(Quantity("weighted total" if hard else "total", place), world), total))


def _operands(core: Core) -> list[int]:
    """Quantities that padding may use: all instances, and the totals that the text names."""
    named = {q: None for fact in core.facts.values() for q in fact.operands if core.parts[q]}
    decoy = [] if core.decoy is None else [core.decoy]  # so that it stands out no more than the needed given one
    named.update({q: None for q in (*core.needed, *decoy) if core.parts[q]})
    return [*core.instances, *named]


def _combine(rng: Random, drawn: list[tuple[str, int]]) -> tuple[Fact, list[str], int]:
    """Return a fact over operands (phrase, value), their phrases in order, and its value, at least 1."""
    difference = len(drawn) == 2 and rng.random() < 0.5 and drawn[0][1] != drawn[1][1]
    if difference:
        drawn = sorted(drawn, key=lambda operand: -operand[1])
    values = [value for _, value in drawn]
    value = values[0] - values[1] if difference else sum(values)
    return Fact(None, False, difference, ()), [name for name, _ in drawn], value
