"""Synthetic tasks that ask for reasoning over evicted context."""

from reverie.tasks.base import (
    Batch,
    DepthScore,
    DeviceTask,
    Score,
    Section,
    Split,
    Task,
    TaskSettings,
    as_batch,
    draw,
    score,
)
from reverie.tasks.depo import Depo
from reverie.tasks.gsm_infinite import GsmInfinite, GsmPages
from reverie.tasks.hops import Hops
from reverie.tasks.key_value import KeyValue
from reverie.tasks.mixture import Mixture
from reverie.tasks.notes import Notes
from reverie.tasks.question_file import QuestionFile
from reverie.tasks.recall import Recall
from reverie.tasks.registry import TASKS, AnyTask, find_task, register_task, task_names
from reverie.tasks.rule110 import Rule110
from reverie.tasks.text_files import TextFiles

for _task in (Rule110, Depo, GsmInfinite, Recall, KeyValue, Notes, Hops, GsmPages, QuestionFile, TextFiles, Mixture):
    register_task(_task)

__all__ = [
    "TASKS",
    "AnyTask",
    "Batch",
    "Depo",
    "DepthScore",
    "DeviceTask",
    "GsmInfinite",
    "GsmPages",
    "Hops",
    "KeyValue",
    "Mixture",
    "Notes",
    "QuestionFile",
    "Recall",
    "Rule110",
    "Score",
    "Section",
    "Split",
    "Task",
    "TaskSettings",
    "TextFiles",
    "as_batch",
    "draw",
    "find_task",
    "register_task",
    "score",
    "task_names",
]
