"""Languages of models that were trained on a task: conversion between text and tokens, questions and answers.

Pretrained models have their own tokenizer instead (`hf/language.py`).
"""

import re
from collections.abc import Sequence
from typing import Protocol

from reverie.errors import UserError
from reverie.pretrained.smollm2 import SmolLM2Tokenizer, load_smollm2
from reverie.tasks import Depo, GsmInfinite, Recall, Rule110, Task


class Language(Protocol):
    """Protocol of a language: how texts, questions and answers become tokens, and tokens text."""

    max_answer_tokens: int  # after which an answer ends in any case
    end_ids: frozenset[int] = frozenset()  # tokens that end an answer and are part of it

    def encode(self, text: str) -> list[int]:
        """Token ids of a text to read. Raises UserError for words that the model does not know."""
        ...

    def question(self, text: str, *, begun: bool = False) -> list[int]:
        """Token ids of a question; `begun` if it comes after earlier turns of a conversation."""
        return self.encode(text)

    def is_question(self, text: str) -> bool:
        """True if the model answers this text, False if it only reads it."""
        ...

    def padded(self, ids: Sequence[int], window_size: int) -> list[int]:
        """A text padded on the left to whole windows, if the model was trained so; else as it is."""
        return list(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer's tokens."""
        ...


def language_of(task: Task) -> Language:
    """The language of models of this task.

    Raises:
        UserError: the task has none, or its tokenizer is not installed.
    """
    if isinstance(task, GsmInfinite):
        return WordProblems(task)
    if isinstance(task, Recall):
        return Sentences()
    if isinstance(task, Depo):
        whole_names = frozenset(i for i, name in enumerate(task.token_names()) if name.isdigit())  # "7", and not "3-"
        return TokenNames(task, longest=task.max_name_tokens, ends=whole_names, pad_id=0)
    if isinstance(task, Rule110):
        return TokenNames(task, longest=task.num_states)
    raise UserError(f"models of {type(task).__name__} cannot read text: the task has no language")


def with_padding(ids: Sequence[int], window_size: int, pad_id: int) -> list[int]:
    """Ids padded on the left to a multiple of `window_size`."""
    return [pad_id] * (-len(ids) % window_size) + list(ids)


class TokenNames(Language):
    """Language of tasks whose tokens have names: a text is token names with spaces between (Depo, Rule 110)."""

    def __init__(
        self, task: Task, *, longest: int, ends: frozenset[int] = frozenset(), pad_id: int | None = None
    ) -> None:
        self.max_answer_tokens, self.end_ids, self.pad_id = longest, ends, pad_id
        self._names = task.token_names()
        self._ids = {name: i for i, name in enumerate(self._names)}

    def encode(self, text: str) -> list[int]:
        words = text.split()
        unknown = next((word for word in words if word not in self._ids), None)
        if unknown is not None:
            known = ", ".join(self._names[:3]) + f", … {self._names[-1]}"
            short = unknown if len(unknown) <= 40 else unknown[:39] + "…"
            raise UserError(f"{short!r} is no token of this model's task: they are {known}, with spaces between")
        return [self._ids[word] for word in words]

    def is_question(self, text: str) -> bool:
        """True for texts that end in "?" (Rule 110) or begin with a number of hops (Depo)."""
        return text.strip().endswith("?") or text.lstrip().startswith("k=")

    def padded(self, ids: Sequence[int], window_size: int) -> list[int]:
        return list(ids) if self.pad_id is None else with_padding(ids, window_size, self.pad_id)

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self._names[i] for i in ids)


class WordProblems(Language):
    """Language of GSM-Infinite: facts, then questions whose answers are numbers.

    If training has several questions per text, a question is the sentence alone; else it stands between "Question:" and
    "Answer:".

    Padding is as in training: facts begin at the start of a window, questions are padded to the length of training's.
    It matters: of 1,246 questions about held-out texts, a model of gsm_infinite/example answers 77.6 % rightly in the
    layout of training, 77.3 % in this one (each question alone in a fresh window), 76.5 % if questions are not padded,
    and 73.3 % without any padding.
    """

    def __init__(self, task: GsmInfinite) -> None:
        self._task, self._text = task, task.text
        self._many = task.num_questions > 1
        last = task.sections()[-1].length  # length of all questions, or of the answer
        self._slot = last // task.num_questions if self._many else 0
        self.max_answer_tokens = 1 if self._many else last + 1
        self.end_ids = frozenset([task.end_id])

    def encode(self, text: str) -> list[int]:
        if isinstance(self._text, SmolLM2Tokenizer):
            return self._text.encode(_one_line(text))
        try:
            return self._text.encode(text)
        except ValueError as error:
            raise UserError(
                f"{error}: this model knows the words of its task alone; `reverie tasks show gsm_infinite` has a text"
            ) from None

    def question(self, text: str, *, begun: bool = False) -> list[int]:
        text = text.strip()
        if not self._many:
            text = text if text.startswith("Question:") else f"Question: {text}"
            text = text if text.endswith("Answer:") else f"{text} Answer:"
        ids = self.encode(text)
        in_slot = self.is_question(text) and len(ids) < self._slot
        return with_padding(ids, self._slot, self._task.pad_id) if in_slot else ids

    def is_question(self, text: str) -> bool:
        return text.rstrip().endswith(("?", "Answer:"))

    def padded(self, ids: Sequence[int], window_size: int) -> list[int]:
        return with_padding(ids, window_size, self._task.pad_id)

    def decode(self, ids: Sequence[int]) -> str:
        ids = [i for i in ids if i not in (self._task.pad_id, self._task.end_id)]
        return self._text.decode(ids).strip()


class Sentences(Language):
    """Language of Recall: plain English in SmolLM2's tokens; "The apple is" asks for one word."""

    max_answer_tokens = 1

    def __init__(self) -> None:
        self._text = load_smollm2()

    def encode(self, text: str) -> list[int]:
        return self._text.encode(_one_line(text))

    def is_question(self, text: str) -> bool:
        return not text.rstrip().endswith(".")

    def decode(self, ids: Sequence[int]) -> str:
        return self._text.decode(ids).strip()


def _one_line(text: str) -> str:
    """Text with one space before every word, the first too, as these tasks write it."""
    words = re.sub(r"\s+", " ", text.strip())
    return f" {words}" if words else ""
