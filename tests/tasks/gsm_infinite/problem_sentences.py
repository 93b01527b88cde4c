"""Sentences of small problems, in names of their own."""

from __future__ import annotations

from reverie.tasks.gsm_infinite.parser import parse
from reverie.tasks.gsm_infinite.solver import work_out

A, B, C = "tin owl in Fen Hollow", "moss fox in Fen Hollow", "tin owl in Quartz Pier"
D = "moss fox in Quartz Pier"
HOW_MANY_A = "How many tin owl does Fen Hollow have?"
PUPS_A, PUPS_B = f"average number of pups per {A}", f"average number of pups per {B}"
PLAIN, WEIGHTED = "total number of grown animals in Fen Hollow", "total number of young animals in Fen Hollow"
PLACES = [
    "J. Paul's Barn",
    "The Isle",
    "Lost in Rye",
    "Salt and Rye",
    "Café Ébène (North)",
    "Rye, the Hill",
    "St. X Jr.",
]


def q(name: str) -> str:
    """A quantity as a phrase."""
    return f"the {name}" if name.startswith(("average", "total")) else f"the number of {name}"


def equals(name: str, right: object) -> str:
    return f"The {q(name)[4:]} equals {right}"


def unknown(name: str) -> str:
    return f"The {q(name)[4:]} {'is' if name.startswith('average') else 'exists, and its number is'} greater than 0"


def text(*sentences: str) -> str:
    return "".join(f"{sentence}. " for sentence in sentences)


def what_is(name: str) -> str:
    return f"What is the {name}?"


def needed(problem: str, question: str) -> frozenset[str]:
    """Quantities that a worked solution computes."""
    return work_out(parse(problem, question)).needed


KNOWN = (equals(B, 5), equals(C, 3), equals(D, 2))
