"""Languages of models that were trained on a task: conversion between text and tokens, questions and answers.

`Task.language` gives a task's own. Pretrained models have their own tokenizer instead (`hf/language.py`).
"""

import re
from collections.abc import Sequence
from typing import Protocol

from reverie.errors import UserError


class Language(Protocol):
    """Protocol of a language: how texts, questions and answers become tokens, and tokens text."""

    max_answer_tokens: int  # after which an answer ends in any case
    end_ids: frozenset[int] = frozenset()  # tokens that end an answer and are part of it
    prose: bool = False  # whether a chat avoids to say the same again, where answers are free text

    def encode(self, text: str) -> list[int]:
        """Token ids of a text to read. Raises UserError for words that the model does not know."""
        ...

    def question(self, text: str, *, begun: bool = False) -> list[int]:
        """Token ids of a question; `begun` if it comes after earlier turns of a conversation."""
        return self.encode(text)

    def opening(self, instructions: str, text: str) -> list[int]:
        """Token ids of instructions and the first question. Raises UserError where the model knows no instructions."""
        raise UserError("this model knows its task alone, and no instructions: leave them out")

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer that was given earlier, as the model writes them, without its end."""
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


def with_padding(ids: Sequence[int], window_size: int, pad_id: int) -> list[int]:
    """Ids padded on the left to a multiple of `window_size`."""
    return [pad_id] * (-len(ids) % window_size) + list(ids)


class TokenNames(Language):
    """Language of tasks whose tokens have names: a text is token names with spaces between.

    Args:
        longest: most tokens of an answer.
        ends: tokens that end one.
        pad_id: the token that texts are padded with; None if they are not.
        question: how questions begin that do not end in "?".
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        longest: int,
        ends: frozenset[int] = frozenset(),
        pad_id: int | None = None,
        question: str | None = None,
    ) -> None:
        self.max_answer_tokens, self.end_ids, self.pad_id = longest, ends, pad_id
        self._names, self._question = names, question
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
        begins = self._question is not None and text.lstrip().startswith(self._question)
        return begins or text.strip().endswith("?")

    def padded(self, ids: Sequence[int], window_size: int) -> list[int]:
        return list(ids) if self.pad_id is None else with_padding(ids, window_size, self.pad_id)

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self._names[i] for i in ids)


def one_line(text: str) -> str:
    """Text with one space before every word, the first too, as these tasks write it."""
    words = re.sub(r"\s+", " ", text.strip())
    return f" {words}" if words else ""
