"""Sentences of word problems about a few names, for tests of the parser and of the solver."""

from __future__ import annotations

A, B, C = "tin owl in Fen Hollow", "moss fox in Fen Hollow", "tin owl in Quartz Pier"
HOW_MANY_A = "How many tin owl does Fen Hollow have?"
PUPS_A, PUPS_B = f"average number of pups per {A}", f"average number of pups per {B}"
PLAIN, WEIGHTED = "total number of grown animals in Fen Hollow", "total number of young animals in Fen Hollow"


def q(name: str) -> str:
    return f"the {name}" if name.startswith(("average", "total")) else f"the number of {name}"


def equals(name: str, right: object) -> str:
    return f"The {q(name)[4:]} equals {right}"


def unknown(name: str) -> str:
    return f"The {q(name)[4:]} {'is' if name.startswith('average') else 'exists, and its number is'} greater than 0"


def text(*sentences: str) -> str:
    return "".join(f"{sentence}. " for sentence in sentences)


def what_is(name: str) -> str:
    return f"What is the {name}?"


KNOWN = (equals(B, 5), equals(C, 3), equals("moss fox in Quartz Pier", 2))
D = "moss fox in Quartz Pier"
PLACES = [
    "J. Paul's Barn",
    "The Isle",
    "Lost in Rye",
    "Salt and Rye",
    "Café Ébène (North)",
    "Rye, the Hill",
    "St. X Jr.",
]
