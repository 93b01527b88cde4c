"""Cores of problems: what is needed takes exactly the operations, and every value is possible."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise, product
from random import Random

import pytest
from problem_sets import LEVELS, MODES, core_of, cores

from reverie.tasks.gsm_infinite.core import Core, Fact, Level, Mode, evaluate
from reverie.tasks.gsm_infinite.draw import budget, draw_core
from reverie.tasks.gsm_infinite.reverse import Linear, slopes
from reverie.tasks.gsm_infinite.worlds import WORLDS


def everything_under(core: Core, quantity: int) -> set[int]:
    """A quantity and all that it is computed from."""
    found, waiting = {quantity}, [quantity]
    while waiting:
        new = set(core.operands(waiting.pop())) - found
        found |= new
        waiting += new
    return found


def recomputed(core: Core, x: int | None = None) -> dict[int, int]:
    """All values from the facts alone; with `x`, as if that were the unknown. Fails on a circle."""
    values: dict[int, int] = {} if x is None or core.unknown is None else {core.unknown: x}

    def value(quantity: int, path: tuple[int, ...] = ()) -> int:
        assert quantity not in path, "a circle"
        if quantity not in values:
            operands = [value(q, (*path, quantity)) for q in core.operands(quantity)]
            if core.quantities[quantity].kind == "weighted total":
                values[quantity] = sum(n * a for n, a in zip(operands[::2], operands[1::2], strict=True))
            elif core.parts[quantity]:
                values[quantity] = sum(operands)
            else:
                values[quantity] = evaluate(core.facts[quantity], operands)
        return values[quantity]

    return {quantity: value(quantity) for quantity in range(len(core.quantities))}


def named(core: Core) -> set[int]:
    """Quantities that the text says something about."""
    operands = (q for fact in core.facts.values() for q in fact.operands)
    return {*core.instances, *core.needed, *operands, *([] if core.decoy is None else [core.decoy])}


def reverse_cores() -> Iterable[Core]:
    return (core for core in cores() if core.unknown is not None)


@pytest.mark.parametrize(
    ("fact", "operands", "value"),
    [
        (Fact(3, False, False, ()), [], 3),
        (Fact(None, False, False, (0,)), [7], 7),
        (Fact(3, False, False, (0,)), [7], 10),
        (Fact(3, True, False, (0,)), [7], 21),
        (Fact(None, False, False, (0, 1, 2)), [7, 1, 4], 12),
        (Fact(None, False, True, (0, 1)), [7, 1], 6),
        (Fact(None, False, True, (0, 1)), [1, 7], -6),
        (Fact(3, True, True, (0, 1)), [7, 1], 18),
        (Fact(3, False, True, (0, 1)), [7, 1], 9),
        (Fact(3, True, False, (0, 1)), [7, 1], 24),
    ],
)
def test_right_hand_sides(fact: Fact, operands: list[int], value: int) -> None:
    assert evaluate(fact, operands) == value
    assert fact.operations == len(operands) + (fact.constant is not None)


def test_budgets_are_the_benchmark_s() -> None:
    bounds = {
        2: 3,
        3: 4,
        4: 4,
        5: 6,
        6: 6,
        7: 10,
        9: 10,
        10: 15,
        11: 15,
        12: 20,
        15: 20,
        16: 25,
        18: 25,
        19: 30,
        20: 30,
    }
    assert {n: budget(n) for n in bounds} == {n: (largest + 1) // 2 for n, largest in bounds.items()}
    sizes = [budget(n) for n in range(1, 31)]
    assert all(a <= b for a, b in pairwise(sizes))


def test_what_is_needed_takes_exactly_the_operations() -> None:
    for i, core in enumerate(cores()):
        assert sum(core.operations(q) for q in core.needed) == 1 + i % 30
        assert set(core.needed) == everything_under(core, core.needed[-1])
        assert len(set(core.needed)) == len(core.needed)
        for position, q in enumerate(core.needed):
            assert set(core.operands(q)) <= set(core.needed[:position])


def test_every_instance_has_a_fact_and_no_fact_reads_a_quantity_twice_or_goes_in_circles() -> None:
    for core in cores():
        assert sorted(core.facts) == list(core.instances)
        for fact in core.facts.values():
            assert len(set(fact.operands)) == len(fact.operands)
            assert not fact.difference or len(fact.operands) == 2
            assert fact.operands or fact.constant is not None
        assert recomputed(core) == core.values


def test_values_are_possible_and_numbers_small() -> None:
    for core in cores():
        values = core.values.values()
        assert min(values) >= 1
        assert max(core.values[q] for q in named(core)) <= 1000
        for fact in core.facts.values():
            assert fact.constant is None or 1 + fact.times <= fact.constant <= 4
            assert fact.constant is not None or not fact.times


@pytest.mark.parametrize(("level", "mode"), list(product(LEVELS, MODES)))
def test_max_value(level: Level, mode: Mode) -> None:
    for seed, operations in product(range(5), range(2, 9)):
        core = core_of(seed, operations, level=level, mode=mode, max_value=9)
        assert max(core.values[q] for q in named(core)) <= 9


def test_quantities_are_counts_averages_and_totals_of_one_group_of_places_and_types() -> None:
    for core in cores():
        kinds = [quantity.kind for quantity in core.quantities]
        links = [(q.place, q.type) for q in core.quantities if q.kind == "count"]
        places = list(dict.fromkeys(q.place for q in core.quantities if q.kind == "total"))
        hard = core.level == "hard"
        order = ["count", *["average"] * hard, "total", *["weighted total"] * hard]
        assert kinds == sorted(kinds, key=order.index)
        assert list(core.instances) == [i for i, kind in enumerate(kinds) if kind in ("count", "average")]
        assert sorted(set(places)) == sorted({place for place, _ in links})
        assert any(set(places) <= set(group) for group in core.world.place_groups)
        assert any({kind for _, kind in links} <= set(group) for group in core.world.type_groups)
        assert len(set(links)) == len(links)
        assert not hard or [(q.place, q.type) for q in core.quantities if q.kind == "average"] == links


def test_parts_of_totals_are_all_counts_of_the_place_each_with_its_average() -> None:
    for core in cores():
        for quantity, parts in zip(core.quantities, core.parts, strict=True):
            if quantity.kind in ("count", "average"):
                assert parts == ()
                continue
            here = [i for i, q in enumerate(core.quantities) if q.kind == "count" and q.place == quantity.place]
            counts, averages = (parts[::2], parts[1::2]) if quantity.kind == "weighted total" else (parts, ())
            assert sorted(counts) == here
            for n, a in zip(counts, averages, strict=bool(averages)):
                assert core.quantities[a] == core.quantities[n]._replace(kind="average")


def test_a_needed_weighted_total_is_one_product_in_small_problems() -> None:
    weighted = [
        (1 + i % 30, len(core.parts[q]))
        for i, core in enumerate(cores())
        for q in core.needed
        if core.quantities[q].kind == "weighted total"
    ]
    assert {parts for operations, parts in weighted if operations <= 10} == {2}
    assert any(parts > 2 for _, parts in weighted)


def test_the_unknown_is_a_number_of_the_text_that_the_given_value_determines() -> None:
    for core in reverse_cores():
        x, last = core.unknown, core.needed[-1]
        assert x is not None
        assert core.asked == x
        assert core.facts[x] == Fact(core.values[x], False, False, ())
        lines = slopes(core)
        at = {value: recomputed(core, value) for value in (1, 2, 3, 4, 50)}
        assert sum(found[last] == core.values[last] for found in at.values()) == 1
        for q, line in lines.items():
            assert line is not None or q != last
            if line is not None:
                assert all(found[q] == line.slope * value + line.constant for value, found in at.items())


def test_without_an_unknown_no_quantity_depends_on_it() -> None:
    core = core_of(0, 8)
    assert slopes(core) == {q: Linear(0, core.values[q]) for q in core.needed}


def test_the_decoy_has_nothing_to_do_with_the_answer() -> None:
    decoys = [(core, core.decoy) for core in reverse_cores() if core.decoy is not None]
    assert len(decoys) > 30
    for core, decoy in decoys:
        assert not everything_under(core, decoy) & set(core.needed)
        assert bool(core.parts[decoy]) == bool(core.parts[core.needed[-1]])
        assert core.operands(decoy)
        assert recomputed(core, 100)[decoy] == core.values[decoy]
    assert all(core.decoy is None for core in cores() if core.unknown is None)


def test_the_last_quantity_is_asked_for_in_forward_mode() -> None:
    assert all(core.asked == core.needed[-1] for core in cores() if core.unknown is None)


def test_the_random_state_decides() -> None:
    states = [Random(3), Random(3), Random(4)]
    drawn = [[draw_core(rng, WORLDS["film"], "hard", "reverse", 5, 1000) for _ in range(20)] for rng in states]
    assert drawn[0] == drawn[1] != drawn[2]
