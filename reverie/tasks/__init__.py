"""Synthetic tasks that ask for reasoning over evicted context."""

from typing import Annotated

from pydantic import Field

from reverie.tasks.base import Batch, DepthScore, DeviceTask, Score, Section, Split, Task, score
from reverie.tasks.depo import Depo
from reverie.tasks.gsm_infinite import GsmInfinite
from reverie.tasks.hops import Hops
from reverie.tasks.recall import Recall
from reverie.tasks.rule110 import Rule110

AnyTask = Annotated[Rule110 | Depo | GsmInfinite | Recall | Hops, Field(discriminator="name")]

TASKS: dict[str, type[Rule110 | Depo | GsmInfinite | Recall | Hops]] = {
    task.model_fields["name"].default: task for task in (Rule110, Depo, GsmInfinite, Recall, Hops)
}

__all__ = [
    "TASKS",
    "AnyTask",
    "Batch",
    "Depo",
    "DepthScore",
    "DeviceTask",
    "GsmInfinite",
    "Hops",
    "Recall",
    "Rule110",
    "Score",
    "Section",
    "Split",
    "Task",
    "score",
]
