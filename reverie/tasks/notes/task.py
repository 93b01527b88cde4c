"""The task `notes`: facts as people write them down, and questions about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from reverie.tasks.base import Split
from reverie.tasks.notes.page import Writer
from reverie.tasks.notes.questions import Forms, about_fact, about_nothing
from reverie.tasks.notes.words import Draw
from reverie.tasks.reading import Page, Question, ReadingTask


class Notes(ReadingTask):
    """Task: pages of facts in plain English, as in a diary, and questions about each.

    Facts are of some three hundred kinds, each with many wordings; several subjects have facts of the same kind. Some
    facts change later, and the newest counts. Some questions ask for what the page does not say, and the answer is
    "not in my notes". Depth is the number of windows from the answer's place to the end of the page.

    Tests use names, values and numbers that never occur in training. The kind of a question says what else is new:
    nothing in "names" and "numbers" (where the answer is one), the statement or the question in "wordings", the kind of
    relation in "kinds". "changed" asks for a fact of which the page has stated another value before.
    "unknown/relation" asks for what the page does not say of a subject that it names, "unknown/subject" for one that it
    never names.
    """

    depth_name: ClassVar[str] = "windows back"

    name: Literal["notes"] = "notes"
    questions_per_fact: int = Field(default=1, ge=1, le=100_000, description="at most, in different forms and wordings")
    cloze: float = Field(default=0.45, ge=0, le=1, description="share of questions that begin a sentence")
    chat: float = Field(
        default=0.6, ge=0, le=1, description="share of all questions that are asked in a chat, as `reverie ask` does"
    )
    facts_changed: float = Field(default=0.1, ge=0, le=1, description="share of facts that change later")
    unknown: float = Field(default=0.06, ge=0, le=0.5, description="share of questions about what the page leaves out")

    def page(self, split: Split, rng: np.random.Generator, count: Callable[[str], int], deepest: int | None) -> Page:
        draw, forms = Draw(rng), Forms(self.cloze, self.chat)
        writer = Writer(split, draw, count, self.facts_changed)
        while writer.tokens < self.text_tokens:
            writer.block(self.text_tokens)
            if writer.tokens >= self.text_tokens:
                writer.count_again()
        told = list(writer.told.values())
        known = [q for fact in told for q in about_fact(fact, split, draw, forms, self.questions_per_fact)]
        some = (about_nothing(told, writer, forms) for _ in known if draw.chance(self.unknown / (1 - self.unknown)))
        unknown: dict[str, Question] = {question.text: question for question in some if question}
        return Page(writer.text, tuple(draw.shuffled([*known, *unknown.values()])), frozenset(writer.told))
