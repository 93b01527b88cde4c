"""Synthetic tasks that ask for reasoning over evicted context."""

from typing import Annotated, get_args

from pydantic import Field

from reverie.tasks.base import Batch, DepthScore, DeviceTask, Score, Section, Split, Task, score
from reverie.tasks.depo import Depo
from reverie.tasks.gsm_infinite import GsmInfinite
from reverie.tasks.hops import Hops
from reverie.tasks.mixture import Mixture
from reverie.tasks.notes import Notes
from reverie.tasks.question_file import QuestionFile
from reverie.tasks.recall import Recall
from reverie.tasks.rule110 import Rule110
from reverie.tasks.text_files import TextFiles

Tasks = Rule110 | Depo | GsmInfinite | Recall | Notes | Hops | QuestionFile | TextFiles | Mixture
AnyTask = Annotated[Tasks, Field(discriminator="name")]

TASKS: dict[str, type[Tasks]] = {task.model_fields["name"].default: task for task in get_args(Tasks)}

__all__ = [
    "TASKS",
    "AnyTask",
    "Batch",
    "Depo",
    "DepthScore",
    "DeviceTask",
    "GsmInfinite",
    "Hops",
    "Mixture",
    "Notes",
    "QuestionFile",
    "Recall",
    "Rule110",
    "Score",
    "Section",
    "Split",
    "Task",
    "TextFiles",
    "score",
]
