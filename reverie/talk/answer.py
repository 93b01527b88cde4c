"""Questions to a model that remembers: each is answered from a copy of the memory, which stays as it is."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError

from reverie.errors import UserError
from reverie.memory.memory import Memory, sleep_over
from reverie.sleep import Context, read
from reverie.sleep.generate import write
from reverie.talk.sleeper import Sleeper

AWAKE = "awake"  # among a memory's notes: tokens heard since the last sleep, as JSON
_TOKEN_IDS = TypeAdapter(list[Annotated[int, Field(strict=True, ge=0, lt=2**63)]])


@dataclass(frozen=True)
class Answer:
    """The answer to a question, with the probability of each token."""

    question: str
    text: str
    ids: tuple[int, ...]
    probabilities: tuple[float, ...]

    @property
    def probability(self) -> float | None:
        """The probability of an answer of a single token; None for longer ones."""
        return self.probabilities[0] if len(self.probabilities) == 1 else None


@torch.no_grad()
def ask(sleeper: Sleeper, memory: Memory, questions: Sequence[str], *, max_tokens: int | None = None) -> list[Answer]:
    """Answer every question by itself, greedily, from a memory of one text; `Memory.empty(sleeper)` is one of nothing.

    A question begins a window; one to a saved chat comes after what that had heard since its last sleep.

    Args:
        max_tokens: of an answer; the language's own if absent.

    Raises:
        UserError: the model does not know a word, or the memory is of several texts.
    """
    asked = [sleeper.question(question) for question in questions]
    answers: dict[int, Answer] = {}
    for length in {len(ids) for ids in asked}:  # questions of equal length are one batch
        places = [i for i, ids in enumerate(asked) if len(ids) == length]
        tokens = torch.tensor([asked[i] for i in places], device=sleeper.device)
        context = starting_point(sleeper, memory, len(places))
        most = max_tokens or sleeper.language.max_answer_tokens
        ids, probabilities = write(
            sleeper.sleeping, tokens, context, memory.config, most, end_ids=sleeper.language.end_ids
        )
        for row, i in enumerate(places):
            said = ids[row].tolist()
            end = next((j + 1 for j, token in enumerate(said) if token in sleeper.language.end_ids), len(said))
            shares = probabilities[row, :end].tolist()
            answers[i] = Answer(questions[i], sleeper.decode(said[:end]), tuple(said[:end]), tuple(shares))
    return [answers[i] for i in range(len(questions))]


def starting_point(sleeper: Sleeper, memory: Memory, batch: int = 1) -> Context:
    """`batch` copies of what the model knows before a question: the memory, and what was heard since its last sleep."""
    if memory.batch_size != 1:
        raise UserError(f"the memory holds {memory.batch_size} texts: ask one of them, memory.rows(torch.tensor([0]))")
    context, awake = memory.branch(batch).context, awake_ids(memory)
    if awake:
        tokens = torch.tensor([awake], device=sleeper.device).expand(batch, -1)
        try:
            _, context = read(sleeper.sleeping, tokens, context, memory.config, newest_only=True)
        except IndexError:
            raise UserError(f'the note "{AWAKE}" of the memory holds tokens that this model does not know') from None
    return context


def awake_ids(memory: Memory) -> list[int]:
    """Tokens that a conversation had heard since its last sleep when it was saved; none for texts that were read."""
    L = memory.config.window_size
    with contextlib.suppress(ValidationError):
        if len(ids := _TOKEN_IDS.validate_json(memory.notes.get(AWAKE, "[]"))) <= L:
            return ids
    raise UserError(f'the note "{AWAKE}" of the memory must be a list of token ids, at most {L}')


@dataclass(frozen=True)
class Examined:
    """A text with questions and right answers: what was answered from its memory, and from an empty one."""

    memory: Memory
    seconds: float  # of reading
    right: tuple[str, ...]
    answers: tuple[Answer, ...]
    blank: tuple[Answer, ...]

    @property
    def accuracy(self) -> float:
        """The share of right answers from the memory."""
        return fmean(answer.text == wanted for answer, wanted in zip(self.answers, self.right, strict=True))

    @property
    def blank_accuracy(self) -> float:
        """The share of right answers from an empty memory."""
        return fmean(answer.text == wanted for answer, wanted in zip(self.blank, self.right, strict=True))

    def summary(self) -> dict[str, Any]:
        """Numbers and answers as a dict that is ready for JSON."""
        answers = [{**vars(answer), "right": right} for answer, right in zip(self.answers, self.right, strict=True)]
        return {
            "tokens": int(self.memory.tokens[0]),
            "passes": int(self.memory.passes[0]),
            "nbytes": self.memory.nbytes,
            "seconds": self.seconds,
            "accuracy": self.accuracy,
            "accuracy_of_empty_memory": self.blank_accuracy,
            "answers": answers,
        }


def examine(sleeper: Sleeper, text: str, questions: Sequence[tuple[str, str]]) -> Examined:
    """Read a text, then ask these questions, of which the right answers are known."""
    begun = time.perf_counter()
    memory = sleep_over(sleeper, [sleeper.text(text)])
    seconds = time.perf_counter() - begun
    asked, right = [question for question, _ in questions], tuple(answer for _, answer in questions)
    answers, blank = (tuple(ask(sleeper, known, asked)) for known in (memory, Memory.empty(sleeper)))
    return Examined(memory, seconds, right, answers, blank)
