"""Vocabularies in which no name can be taken for another."""

from __future__ import annotations

from itertools import combinations

import pytest
from reference_problems import reference_problems

from reverie.tasks.gsm_infinite.parser import PLAIN_NOUNS, WEIGHTED_NOUNS
from reverie.tasks.gsm_infinite.worlds import WORLDS, World

each_world = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)


def core_names(world: World) -> list[str]:
    return [name for group in (*world.place_groups, *world.type_groups) for name in group]


def all_names(world: World) -> list[str]:
    return [*core_names(world), *world.padding_places, *world.padding_types]


@each_world
def test_names_are_distinct_and_free_of_the_grammar(world: World) -> None:
    names = all_names(world)
    assert len(set(names)) == len(names)
    for name in (*names, world.attribute, world.plain_noun, world.weighted_noun):
        assert not set(name) & set(".,?0123456789")
        assert not {"in", "and", "does", "per", "equals"} & set(name.split())


@each_world
def test_sizes(world: World) -> None:
    assert {len(group) for group in (*world.place_groups, *world.type_groups)} == {5}
    assert len(world.padding_places) >= 100
    assert len(world.padding_types) >= 100


@each_world
def test_nouns_of_totals_are_known_to_the_parser(world: World) -> None:
    assert world.plain_noun in PLAIN_NOUNS
    assert world.weighted_noun in WEIGHTED_NOUNS


def test_worlds_share_no_core_names() -> None:
    for a, b in combinations(WORLDS.values(), 2):
        assert not set(core_names(a)) & set(core_names(b))


def test_core_names_are_our_own() -> None:
    theirs = "".join(problem["problem"] for problem in reference_problems())
    ours = (name for world in WORLDS.values() for name in (*core_names(world), world.plain_noun, world.weighted_noun))
    assert [name for name in ours if name in theirs] == []
