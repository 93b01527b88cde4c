"""Synthetic tasks that ask for reasoning over evicted context. Imports nothing else of reverie."""

from typing import Annotated

from pydantic import Field

from reverie.tasks.base import Batch, DepthScore, Score, Section, Split, Task, score
from reverie.tasks.depo import Depo
from reverie.tasks.rule110 import Rule110

AnyTask = Annotated[Rule110 | Depo, Field(discriminator="name")]

TASKS: dict[str, type[Rule110] | type[Depo]] = {"rule110": Rule110, "depo": Depo}

__all__ = [
    "TASKS",
    "AnyTask",
    "Batch",
    "Depo",
    "DepthScore",
    "Rule110",
    "Score",
    "Section",
    "Split",
    "Task",
    "score",
]
