"""A core in English: sentences of facts, and questions, in the benchmark's forms.

A sentence is a list of pieces. Each begins with the space before a word, so that token counts of pieces add up to that
of the text; and there are few different pieces, so that their tokens can be cached.
"""

from reverie.tasks.gsm_infinite.core import Core, Fact, Quantity
from reverie.tasks.gsm_infinite.worlds import World

Pieces = list[str]


def name(quantity: Quantity, world: World) -> str:
    """Name of a quantity, without article."""
    match quantity.kind:
        case "count":
            return f"{quantity.type} in {quantity.place}"
        case "average":
            return f"average number of {world.attribute} per {quantity.type} in {quantity.place}"
        case "total":
            return f"total number of {world.plain_noun} in {quantity.place}"
        case "weighted total":
            return f"total number of {world.weighted_noun} in {quantity.place}"


def phrase(quantity: Quantity, world: World) -> str:
    """A quantity in running text, such as " the number of …"."""
    return f" the number of {name(quantity, world)}" if quantity.kind == "count" else f" the {name(quantity, world)}"


def fact_sentence(subject: str, fact: Fact, operands: list[str]) -> Pieces:
    """The sentence "The … equals …."; subject and operands are phrases, as `phrase` returns them."""
    pieces = [_capital(subject), " equals"]
    if fact.constant is not None:
        pieces.append(f" {fact.constant}")
        if operands:
            pieces.append(" times" if fact.times else " plus")
    match operands:
        case []:
            pass
        case [only]:
            pieces.append(only)
        case [first, second]:
            pieces += [" the difference between" if fact.difference else " the sum of", first, " and", second]
        case [*rest, last]:
            pieces.append(" the sum of")
            for operand in rest:
                pieces += [operand, ","]
            pieces += [" and", last]
    pieces.append(".")
    return pieces


def unknown_sentence(quantity: Quantity, world: World) -> Pieces:
    """The sentence that says of the unknown that it is greater than 0."""
    known = " exists, and its number is greater than 0" if quantity.kind == "count" else " is greater than 0"
    return [_capital(phrase(quantity, world)), known, "."]


def core_sentences(core: Core) -> list[Pieces]:
    """Sentences of a core: the facts of all instances, and in reverse mode the given numbers."""
    phrases = [phrase(quantity, core.world) for quantity in core.quantities]
    sentences = []
    for q in core.instances:
        if q == core.unknown:
            sentences.append(unknown_sentence(core.quantities[q], core.world))
        else:
            fact = core.facts[q]
            sentences.append(fact_sentence(phrases[q], fact, [phrases[p] for p in fact.operands]))
    if core.unknown is not None:
        given = [core.needed[-1]] if core.decoy is None else [core.needed[-1], core.decoy]
        sentences += [fact_sentence(phrases[q], Fact(core.values[q], False, False, ()), []) for q in given]
    return sentences


def question_text(quantity: Quantity, world: World) -> str:
    """The question that asks for a quantity."""
    if quantity.kind == "count":
        return f"How many {quantity.type} does {quantity.place} have?"
    return f"What is the {name(quantity, world)}?"


def _capital(phrase: str) -> str:
    """A phrase at the start of a sentence."""
    return " T" + phrase[2:]
