"""Word problems as pages for a pretrained model: facts that are read and gone, then questions about quantities."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from random import Random
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from reverie.tasks.base import Split
from reverie.tasks.fillers import fill
from reverie.tasks.gsm_infinite.generator import ProblemConfig, draw_problem
from reverie.tasks.gsm_infinite.task import GsmInfinite, asked_about
from reverie.tasks.gsm_infinite.text import question_text
from reverie.tasks.gsm_infinite.worlds import WorldName
from reverie.tasks.reading import Page, Question, ReadingTask

_ABOUT = "the problem"  # one page's quantities may have the names of another's, so the newest problem alone is asked
_MOST_OPERATIONS = 8  # of problems that fit into a window of the default size


class GsmPages(ReadingTask):
    """Task: short GSM-Infinite problems (forward, level medium) of 1 to `max_operations` operations.

    A page holds the facts of one problem, padding of the same kind and sentences about nothing; its questions ask for
    the problem's quantity and others of the same facts. Values stay below 10. Depth is the number of operations of the
    answer. In training the problem's number of operations is drawn from those that may be asked, in tests from all.

    Problems are held out as in the task `gsm_infinite`: no test's set of facts occurs in training.
    """

    depth_name: ClassVar[str] = "operations"

    name: Literal["gsm_pages"] = "gsm_pages"
    worlds: tuple[WorldName, ...] = Field(default=("wildlife",), min_length=1)
    max_operations: int = Field(default=6, ge=1, le=_MOST_OPERATIONS)

    def page(self, split: Split, rng: np.random.Generator, count: Callable[[str], int], deepest: int | None) -> Page:
        most = self.max_operations if deepest is None else max(min(deepest, self.max_operations), 1)
        operations, number = 1 + int(rng.integers(most)), int(rng.integers(2**62))
        high = self.text_tokens - 1  # the line break
        config = self._config.model_copy(update={"length": (max(high // 2, 1), high)})
        problem = draw_problem(config, split, number, 0, 0, operations, measure=count)
        facts = [f" {sentence}" for sentence in re.split(r"(?<=\.) ", problem.problem)]
        text = fill(facts, self.text_tokens, count, rng, "the facts of a problem").text
        core = problem.core
        questions = tuple(
            Question(
                question_text(core.quantities[quantity], core.world),
                str(core.values[quantity]),
                *("qa", "problems", _ABOUT, None, steps),
            )
            for quantity, steps in asked_about(Random(number), core, len(core.quantities), most)
        )
        return Page(text, questions, frozenset([_ABOUT]))

    @property
    def _config(self) -> ProblemConfig:
        return ProblemConfig(
            worlds=self.worlds,
            levels=("medium",),
            modes=("forward",),
            max_operations=self.max_operations,
            question_position="last",
            instruction=False,
            max_value=9,
        )

    @cached_property
    def _same(self) -> GsmInfinite:
        """The task whose problems and questions these are, without text."""
        return GsmInfinite(
            **self._config.model_dump(exclude={"length"}), length=(1, 2**20), tokenizer="words", num_questions=8
        )

    def depths(self) -> range:
        """Numbers of operations."""
        return range(1, self.max_operations + 1)

    def chance(self) -> dict[int, float]:
        """Accuracy, at each depth, of the most frequent answer."""
        return self._same.chance()

    def chance_exact(self) -> float:
        return self._same.chance_exact()
