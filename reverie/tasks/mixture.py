"""A mixture of tasks of reading, by weights."""

from __future__ import annotations

from itertools import accumulate
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator

from reverie.tasks.base import Split, check_draw
from reverie.tasks.reading import ReadingTask, TokenPage, TokenQuestion, generator_of
from reverie.tasks.registry import dumped, task_from


def _reading_task(value: Any) -> ReadingTask:
    task = task_from(value)
    if not isinstance(task, ReadingTask) or isinstance(task, Mixture):
        raise ValueError(f"a part must be of a task of reading, and {task.name} is none")
    return task


ReadingTasks = Annotated[ReadingTask, PlainValidator(_reading_task), PlainSerializer(dumped)]
"""The tasks that a mixture may have."""

_SHARED = "tokenizer", "window_tokens", "num_windows", "num_questions"
_PART = 1  # stream of the draw that says which part an example belongs to; those of the parts are others


class Part(BaseModel):
    """A task and how often it is drawn; weights need not sum to 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    task: ReadingTasks


class Mixture(ReadingTask):
    """Task: each example is one of another task, drawn by weight.

    A part that says nothing of tokenizer, windows and number of questions has those of the mixture; it may not have
    others.
    The kinds of its questions begin with its name, such as "hops/hops". An example is what its task alone would make
    for the same (split, seed, step, example), so a part's weight changes how often it is seen, and not its texts.
    """

    name: Literal["mixture"] = "mixture"
    parts: tuple[Part, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _given_to_parts(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("parts"), list | tuple):
            return values
        shared = {key: values.get(key, cls.model_fields[key].default) for key in _SHARED}
        return {**values, "parts": tuple(_with(part, shared) for part in values["parts"])}  # recipes are strict

    @model_validator(mode="after")
    def _parts_agree(self) -> Mixture:
        for part in self.parts:
            for key in _SHARED:
                theirs, ours = getattr(part.task, key), getattr(self, key)
                if theirs != ours:
                    raise ValueError(f"{key} of part {part.task.name} is {theirs}, it must be the mixture's, {ours}")
        return self

    def pages(
        self, split: Split, seed: int, step: int, examples: range, max_depth: int | None = None
    ) -> list[TokenPage]:
        check_draw(seed, step, examples)

        def one(example: int) -> TokenPage:
            task = self._drawn(split, seed, step, example)
            (page,) = task.pages(split, seed, step, range(example, example + 1), max_depth)
            return page._replace(questions=tuple(_named(question, task.name) for question in page.questions))

        return [one(example) for example in examples]

    def _drawn(self, split: Split, seed: int, step: int, example: int) -> ReadingTask:
        """The task that an example belongs to."""
        edges = list(accumulate(part.weight for part in self.parts))
        at = generator_of(split, seed, step, example, _PART).random() * edges[-1]
        return self.parts[min(int(np.searchsorted(edges, at, side="right")), len(edges) - 1)].task

    def depths(self) -> range:
        """Those of all parts."""
        return range(1, max(part.task.depths().stop for part in self.parts))

    def chance(self) -> dict[int, float]:
        """By depth, the mean by weight over the parts that have it."""
        by_part = [(part.weight, part.task.chance()) for part in self.parts]
        return {
            depth: sum(weight * chance[depth] for weight, chance in by_part if depth in chance)
            / sum(weight for weight, chance in by_part if depth in chance)
            for depth in self.depths()
        }

    def chance_exact(self) -> float:
        total = sum(part.weight for part in self.parts)
        return sum(part.weight * part.task.chance_exact() for part in self.parts) / total


def _with(part: Any, shared: dict[str, Any]) -> Any:
    """A part as given, whose task has `shared` where it says nothing; what is no part is left for others to refuse."""
    if isinstance(part, dict) and isinstance(part.get("task"), dict):
        return {**part, "task": {**shared, **part["task"]}}
    return part


def _named(question: TokenQuestion, name: str) -> TokenQuestion:
    return question._replace(kind=f"{name}/{question.kind}" if question.kind else name)
