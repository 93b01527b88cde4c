"""Random drawing of a problem's core.

The needed part is drawn from the question backwards with the wanted number of operations as budget, so the count is
exact by construction. Quantities that are not needed then get facts of the same kinds. All randomness comes from one
`random.Random`, and no set of strings is iterated over, so a seed determines a problem.
"""

from math import exp
from random import Random

from reverie.tasks.gsm_infinite.core import Core, Fact, Level, Mode, Quantity, evaluate
from reverie.tasks.gsm_infinite.reverse import choose_decoy, choose_unknown
from reverie.tasks.gsm_infinite.worlds import World

MAX_OPERATIONS = 30
LARGEST_NUMBER = 4  # in facts


def draw_core(rng: Random, world: World, level: Level, mode: Mode, operations: int, max_value: int) -> Core | None:
    """Try to draw a problem whose answer takes exactly `operations`; None if this draw cannot be completed.

    Every value is in 1..max_value, unneeded ones too, so that none stands out. Only totals that the text does not name
    may be larger.
    """
    core = _structure(rng, world, level, mode, operations)
    if not _choose_needed(rng, core, operations) or not _needed_facts(rng, core, operations, max_value):
        return None
    if mode == "reverse" and not choose_unknown(core):
        return None
    if not _unneeded_facts(rng, core, max_value):
        return None
    if mode == "reverse":
        core.decoy = choose_decoy(rng, core, max_value)
    return core


# The structure: which types are in which places.


def _structure(rng: Random, world: World, level: Level, mode: Mode, operations: int) -> Core:
    hard = level == "hard"
    places, types, links = _draw_links(rng, hard, mode, budget(operations))
    place_names = rng.sample(rng.choice(world.place_groups), places)
    type_names = rng.sample(rng.choice(world.type_groups), types)
    quantities = [Quantity("count", place_names[p], type_names[t]) for p, t in links]
    if hard:
        quantities += [Quantity("average", place_names[p], type_names[t]) for p, t in links]
    parts: list[tuple[int, ...]] = [()] * len(quantities)
    counts_of: list[list[int]] = [[] for _ in range(places)]
    for i, (p, _) in enumerate(links):
        counts_of[p].append(i)
    for p, counts in enumerate(counts_of):
        quantities.append(Quantity("total", place_names[p]))
        parts.append(tuple(counts))
    if hard:
        for p, counts in enumerate(counts_of):
            quantities.append(Quantity("weighted total", place_names[p]))
            parts.append(tuple(q for n in counts for q in (n, n + len(links))))
    return Core(world, level, mode, quantities, parts)


def budget(operations: int) -> int:
    """The benchmark's size of a problem with that many operations, which limits its places and types."""
    steps = ((2, 3), (4, 4), (6, 6), (9, 10), (11, 15), (15, 20), (18, 25), (MAX_OPERATIONS, 30))
    return next((largest + 1) // 2 for last, largest in steps if operations <= last)


_CENTRES = (0.1, 0.3, 0.5, 0.7, 0.9)


def _draw_links(rng: Random, hard: bool, mode: Mode, size: int) -> tuple[int, int, list[tuple[int, int]]]:
    """Draw numbers of places and types, and links as (place, type) pairs; each place and each type has a link."""
    # the benchmark's exp(-(r - c)²), where r goes from 0 to 1 with the size: never more than 2 : 1
    weights = [exp(-(((size - 1) / 19 - centre) ** 2)) for centre in _CENTRES]
    small, large = sorted(rng.choices((1, 2, 3, 4, 5), weights, k=2))
    if size <= 5 and mode == "reverse":
        small, large = min(small, 3), min(large, 3)
    elif size <= 5 and not hard:
        small, large = max(small, 2), max(large, 2)
    lowest = small * (2 if hard else 1)
    wanted = min(rng.randint(lowest, 20), rng.randint(lowest, 20), large * large + (large if hard else 0))
    places = types = small
    go_on = rng.random()
    while places < large or types < large:
        if places * types >= wanted and (types == wanted or rng.random() > go_on):
            break
        if (rng.random() < 0.5 and places < large) or types == large:
            places += 1
        else:
            types += 1
    return places, types, _draw_pairs(rng, places, types, max(wanted, places, types))


def _draw_pairs(rng: Random, places: int, types: int, wanted: int) -> list[tuple[int, int]]:
    """Draw `wanted` links if there are so many, at least one for each place and type."""
    linked = {(rng.randrange(places), t): None for t in range(types)}  # a dict keeps the order
    bare = set(range(places)) - {p for p, _ in linked}
    for p in sorted(bare):
        linked[p, rng.randrange(types)] = None
    free = [(p, t) for p in range(places) for t in range(types) if (p, t) not in linked]
    more = min(wanted - len(linked), len(free))
    return [*linked, *(rng.sample(free, more) if more > 0 else ())]


# The needed part, from the question backwards.

# Shares of kinds of the last quantity: asked for (forward) or given (reverse). Totals are drawn more often than in the
# benchmark, since their draws fail more often later; the shares in finished problems are close to the benchmark's
# (docs/GSM_INFINITE.md).
_LAST_KIND: dict[tuple[Mode, Level], dict[str, float]] = {
    ("forward", "medium"): {"total": 0.90, "count": 0.10},
    ("forward", "hard"): {"average": 0.38, "total": 0.42, "count": 0.06, "weighted total": 0.14},
    ("reverse", "medium"): {"total": 0.93, "count": 0.07},
    ("reverse", "hard"): {"average": 0.25, "total": 0.65, "count": 0.04, "weighted total": 0.06},
}
_LARGEST_FACT = 4  # operations of a needed fact
_LARGEST_WITH_NARROW = 10  # operations up to which a weighted total has one type


def _choose_needed(rng: Random, core: Core, operations: int) -> bool:
    """Fill `core.needed`, and `core.facts` with the operands that link needed quantities; False if none fits."""
    wanted = operations // 2 + 1 + (operations % 2 and rng.random() < 0.3)  # the benchmark's mean is operations / 2 + 1
    last = _choose_last(rng, core, operations)
    if last is None:
        return False
    backwards: list[int] = []
    pending = [last]  # a placed quantity depends on each, and all quantities that depend on it are placed
    reserved = {last, *core.parts[last]}  # placed, pending, or part of a pending total
    spare = operations - _least_cost(core, last)
    while pending:
        quantity = pending.pop(rng.randrange(len(pending)))
        backwards.append(quantity)
        if core.parts[quantity]:
            pending += core.parts[quantity]
            continue
        link = None
        if len(reserved) < wanted and (not pending or rng.random() < 0.5):
            link = _choose_link(rng, core, reserved, pending, spare, operations)
        core.facts[quantity] = Fact(None, False, False, () if link is None else (link,))
        if link is not None and link not in reserved:
            pending.append(link)
            reserved.update((link, *core.parts[link]))
            spare -= _least_cost(core, link)
    core.needed = backwards[::-1]
    return True


def _choose_last(rng: Random, core: Core, operations: int) -> int | None:
    """Draw the last needed quantity; None if there is none of the kind drawn."""
    kinds = _LAST_KIND[core.mode, core.level]
    kind = rng.choices(list(kinds), list(kinds.values()))[0] if operations > 1 else "count"
    fit = [
        q
        for q, quantity in enumerate(core.quantities)
        if quantity.kind == kind and _least_cost(core, q) <= operations and not _too_wide(core, q, operations)
    ]
    return rng.choice(fit) if fit else None


def _least_cost(core: Core, quantity: int) -> int:
    """Least number of operations of a quantity together with its parts."""
    return 2 * len(core.parts[quantity]) or 1


def _too_wide(core: Core, quantity: int, operations: int) -> bool:
    """True for a weighted total of several types where the benchmark has only those of one type."""
    several = core.quantities[quantity].kind == "weighted total" and len(core.parts[quantity]) > 2
    return several and operations <= _LARGEST_WITH_NARROW


def _choose_link(
    rng: Random, core: Core, reserved: set[int], pending: list[int], spare: int, operations: int
) -> int | None:
    """Draw an operand for the quantity placed last, totals more often; the parts of a new total must be unused."""
    options = [*pending]
    weights = [3.0 if core.parts[q] else 1.0 for q in options]
    for q, parts in enumerate(core.parts):
        free = q not in reserved and not any(p in reserved for p in parts)
        if free and _least_cost(core, q) <= spare and not _too_wide(core, q, operations):
            options.append(q)
            weights.append(3.0 if parts else 1.0)
    return rng.choices(options, weights)[0] if options else None


def _needed_facts(rng: Random, core: Core, operations: int, max_value: int) -> bool:
    """Give every needed instance operands and numbers so that operations sum to `operations`; False if impossible."""
    spent = sum(len(core.parts[q]) or 1 for q in core.needed)
    facts = {q: i for i, q in enumerate(core.needed) if not core.parts[q]}
    edges = dict.fromkeys(facts, 1)
    while spent < operations:
        room = [q for q, earlier in facts.items() if edges[q] < min(earlier + 1, _LARGEST_FACT)]
        if not room:
            return False
        edges[rng.choices(room, [_GROWTH[edges[q]] for q in room])[0]] += 1
        spent += 1
    if spent > operations:
        return False
    for position, q in enumerate(core.needed):
        if q in edges:
            core.facts[q] = _draw_operands(rng, core.facts[q].operands, core.needed[:position], edges[q])
            if not _draw_numbers(rng, core, q, max_value):
                return False
        core.values[q] = core.value(q)
        if not 1 <= core.values[q] <= max_value:
            return False
    return True


_GROWTH = {1: 1.0, 2: 0.25, 3: 0.35}  # weight by which a fact of that many operations gets one more


def _draw_operands(rng: Random, linked: tuple[int, ...], earlier: list[int], edges: int) -> Fact:
    """Draw `edges` operands, the linked one included; one of them may be a number, 0 for now."""
    others = [q for q in earlier if q not in linked]
    missing = edges - len(linked)
    if missing > len(others):
        number = True
    elif missing == 0:
        number = False
    else:
        number = rng.random() < (0.5 if not linked and edges == 1 else 0.8 if edges == 2 else 0.5)
    drawn = rng.sample(others, missing - number) if missing > number else []
    return Fact(0 if number else None, False, False, (*linked, *drawn))


def _draw_numbers(rng: Random, core: Core, quantity: int, max_value: int) -> bool:
    """Draw sum or difference, plus or times, and the number of a fact; True if the value is in 1..max_value."""
    fact = core.facts[quantity]
    values = [core.values[q] for q in fact.operands]
    operands = fact.operands
    difference = len(operands) == 2 and rng.random() < 0.5
    if difference and values[0] < values[1]:
        operands, values = operands[::-1], values[::-1]
    difference = difference and values[0] != values[1]
    times = bool(operands) and fact.constant is not None and rng.random() < 0.5
    constant = fact.constant
    if constant is not None:  # a factor is 2 to 4, a summand 1 to 4, a number alone one or the other
        constant = rng.randint(2 if times or (not operands and rng.random() < 0.5) else 1, LARGEST_NUMBER)
    core.facts[quantity] = settled = Fact(constant, times, difference, operands)
    return 1 <= evaluate(settled, values) <= max_value


# Facts that the answer does not need.


def _unneeded_facts(rng: Random, core: Core, max_value: int) -> bool:
    """Draw facts for all other instances, over needed and unneeded quantities, without cycles; False if one fails."""
    rest = [q for q in core.instances if q not in core.facts]
    rng.shuffle(rest)
    known, independent = list(core.needed), []
    totals = [q for q in range(len(core.instances), len(core.quantities)) if q not in core.values]
    for q in rest:
        alone = rng.random() < 0.5
        pool = independent if alone else known
        for _ in range(20):
            core.facts[q] = _draw_unneeded(rng, pool)
            if _draw_numbers(rng, core, q, max_value):
                break
        else:
            return False
        core.values[q] = core.value(q)
        known.append(q)
        if alone:
            independent.append(q)
        for total in [t for t in totals if all(p in core.values for p in core.parts[t])]:
            totals.remove(total)
            core.values[total] = core.value(total)
            if core.values[total] <= max_value:
                known.append(total)
    for total in totals:
        core.values[total] = core.value(total)
    return True


def _draw_unneeded(rng: Random, pool: list[int]) -> Fact:
    """Draw operands from `pool`; a number is 0 for now."""
    edges = 1
    while edges < 4 and rng.random() < 0.5:
        edges += 1
    number = rng.random() < 0.5 or edges > len(pool)
    return Fact(0 if number else None, False, False, tuple(rng.sample(pool, min(edges - number, len(pool)))))
