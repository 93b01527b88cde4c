"""Tasks of reading: pages of text, and questions that a model answers when it can no longer see the page.

A page is cut into windows of equal length, wherever the edges fall; the model sleeps over each. Every question begins a
window of its own. `notes`, `hops`, `qa` and `text` are such tasks; `pages` makes their examples, for any tokenizer.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from reverie.errors import UserError
from reverie.pretrained.smollm2 import load_smollm2
from reverie.pretrained.speaker import Speaker, speaker_of
from reverie.tasks.base import STREAMS, Batch, Section, Split, TaskSettings, as_batch, check_draw
from reverie.tasks.language import Language

Form = Literal["cloze", "qa", "chat", "chat_cloze"]
NOTHING_KNOWN = "not in my notes"
"""The right answer to a question about what no page has said."""


class Question(NamedTuple):
    """A question about a page, as text."""

    text: str  # "Marta Olsen works as a" in a cloze, in a chat or by itself; else a whole question
    answer: str  # "baker", without the space before it
    form: Form
    kind: str = ""  # by which results are told apart, beside depth
    about: str = ""  # what is asked for, such as "job of Marta Olsen"; of pages that say it, the newest counts
    source: tuple[int, int] | None = None  # characters [start, stop) of the page where the answer stands
    depth: int | None = None  # None: the number of windows from the answer's place to the end of the text


class Page(NamedTuple):
    """A text with questions about it."""

    text: str
    questions: tuple[Question, ...]
    facts: frozenset[str] = frozenset()  # what it says, in the words of `Question.about`


class TokenQuestion(NamedTuple):
    """A question as tokens."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    kind: str
    about: str
    source: tuple[int, int] | None  # tokens [start, stop) of the page where the answer stands
    depth: int | None
    ends: bool = True  # the answer's last token ends it, and is none of its words

    @property
    def words(self) -> tuple[int, ...]:
        """The answer without the token that ends it."""
        return self.answer[:-1] if self.ends else self.answer


class TokenPage(NamedTuple):
    """A page as tokens."""

    tokens: tuple[int, ...]
    questions: tuple[TokenQuestion, ...]
    facts: frozenset[str] = frozenset()


def generator_of(split: Split, seed: int, step: int, example: int, stream: int = 0) -> np.random.Generator:
    """A generator that depends on these numbers alone; those of different streams are independent."""
    key = [seed, step * len(STREAMS) + STREAMS[split]]
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, example, stream]))


_WORDING: dict[Form, str] = {"cloze": "{}", "qa": "Q: {} A:"}


def prompt_of(question: Question, speaker: Speaker) -> tuple[str, str]:
    """The prompt of a question and its answer, as texts that follow each other.

    A line break goes before a prompt that is no chat, since the first token of a window is what attention rests on, and
    loses its own meaning.
    """
    if question.form in ("chat", "chat_cloze"):
        return speaker.turn(question.text), f" {question.answer}"
    return f"\n{_WORDING[question.form].format(question.text)}", f" {question.answer}"


def as_tokens(page: Page, speaker: Speaker, length: int) -> TokenPage:
    """The first `length` tokens of a page, and the questions whose answers stand in them, or nowhere.

    Raises:
        ValueError: the page is shorter.
    """
    ids, ends = speaker.encode(page.text)
    if len(ids) < length:
        raise ValueError(f"the page has {len(ids)} tokens, but {length} are wanted")
    questions = []
    for question in page.questions:
        prompt, answer = (speaker.encode(text)[0] for text in prompt_of(question, speaker))
        source = None if question.source is None else _tokens_of(question.source, ids, ends, answer)
        if source is None or source[1] <= length:
            labels = question.kind, question.about, source, question.depth
            questions.append(TokenQuestion(tuple(prompt), (*answer, speaker.end_id), *labels))
    return TokenPage(tuple(ids[:length]), tuple(questions), page.facts)


def _tokens_of(place: tuple[int, int], ids: list[int], ends: list[int], answer: list[int]) -> tuple[int, int]:
    """Tokens [start, stop) in which characters [start, stop) stand; with the space before, if that is one by itself."""
    start, stop = bisect_right(ends, place[0]), bisect_left(ends, place[1]) + 1
    return start - (ids[start - 1 : stop] == answer), stop


class ReadingTask(TaskSettings):
    """Base of the tasks of reading; subclasses define `page`, `depths` and `name`.

    As a `Batch`, an example is a page of `num_windows` windows, then `num_questions` questions with their answers, each
    in a window of its own with padding after it. An answer's tokens are predicted one by one, the one that ends it too.
    """

    tokenizer: str = Field(default="smollm2", description='of "smollm2", a folder, or a model on the hub')
    window_tokens: int = Field(default=128, ge=16, le=2**20, description="tokens of a window; as sleep.window_size")
    num_windows: int = Field(default=1, ge=1, le=100_000, description="of a page")
    num_questions: int = Field(default=4, ge=1, le=100_000, description="about a page, at most, in a batch")

    def page(self, split: Split, rng: np.random.Generator, count: Callable[[str], int], deepest: int | None) -> Page:
        """A page of at least `text_tokens` tokens, as `count` counts them, with questions in random order.

        Args:
            deepest: asks for nothing deeper, where the task has depths of its own.
        """
        raise NotImplementedError

    def pages(
        self, split: Split, seed: int, step: int, examples: range, max_depth: int | None = None
    ) -> list[TokenPage]:
        """The pages of these examples: functions of (split, seed, step, example) and of the tokenizer."""
        check_draw(seed, step, examples)
        speaker = speaker_of(self.tokenizer)
        deepest = None if split == "test" else max_depth

        def count(text: str) -> int:
            return len(speaker.encode(text)[0])

        def one(example: int) -> TokenPage:
            page = self.page(split, generator_of(split, seed, step, example), count, deepest)
            return as_tokens(page, speaker, self.text_tokens)

        return [one(example) for example in examples]

    @property
    def text_tokens(self) -> int:
        """Tokens of a page."""
        return self.num_windows * self.window_tokens

    @property
    def vocab_size(self) -> int:
        return speaker_of(self.tokenizer).vocab_size

    def sections(self) -> list[Section]:
        return [Section("page", self.text_tokens), Section("questions", self.num_questions * self.window_tokens)]

    def token_names(self) -> list[str]:
        return load_smollm2().token_names() if self.tokenizer == "smollm2" else [str(i) for i in range(self.vocab_size)]

    def language(self) -> Language:
        """Models that read pages are pretrained, and speak as they do."""
        raise UserError(f"models of {type(self).__name__} cannot read text: the task has no language")

    def chance(self) -> dict[int, float]:
        """0 at each depth: nobody guesses a name out of thousands."""
        return dict.fromkeys(self.depths(), 0.0)

    def chance_exact(self) -> float:
        return 0.0

    def depths(self) -> range:
        """Windows back, the newest is 1."""
        return range(1, self.num_windows + 1)

    def depth_of(self, question: TokenQuestion) -> int:
        """Its depth: its own, or how many windows back its answer stands in a page; 1 where it stands nowhere."""
        if question.depth is not None:
            return question.depth
        return 1 if question.source is None else self.num_windows - (question.source[1] - 1) // self.window_tokens

    def batch(self, split: Split, seed: int, step: int, examples: range, max_depth: int | None = None) -> Batch:
        pages = self.pages(split, seed, step, examples, max_depth=max_depth)
        fields = [np.zeros((len(pages), self.sequence_length), dtype=np.int64) for _ in range(4)]
        tokens, targets, depth, index = fields
        index -= 1
        for row, page in enumerate(pages):
            tokens[row, : self.text_tokens] = page.tokens
            fitting = [q for q in page.questions if len(q.prompt) + len(q.answer) <= self.window_tokens + 1]
            for i, question in enumerate(fitting[: self.num_questions]):
                begin = self.text_tokens + i * self.window_tokens
                shown = (*question.prompt, *question.answer[:-1])
                tokens[row, begin : begin + len(shown)] = shown
                scored = slice(begin + len(question.prompt) - 1, begin + len(shown))
                targets[row, scored], index[row, scored] = question.answer, i
                depth[row, scored] = self.depth_of(question)
        return as_batch(tokens, targets, depth, index)
