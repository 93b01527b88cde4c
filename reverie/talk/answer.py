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
from reverie.sleep.generate import log_probability, write
from reverie.talk.sleeper import Sleeper

AWAKE = "awake"  # among a memory's notes: tokens heard since the last sleep, as JSON
_TOKEN_IDS = TypeAdapter(list[Annotated[int, Field(strict=True, ge=0, lt=2**63)]])


@dataclass(frozen=True)
class Answer:
    """The answer to a question, without a space before it, and the probability of each token."""

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
            answers[i] = Answer(
                questions[i], sleeper.decode(said[:end]).removeprefix(" "), tuple(said[:end]), tuple(shares)
            )
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
class Compared:
    """The answer to a question from a memory beside that from an empty one, and what the first owes to the memory."""

    answer: Answer
    empty: Answer
    log_probability: float  # of the whole of `answer`, token after token, from the memory, in nats
    empty_log_probability: float  # of the same tokens from an empty memory

    @property
    def gain(self) -> float:
        """How much likelier the memory makes its answer: log of the ratio of both probabilities, in nats."""
        return self.log_probability - self.empty_log_probability

    def summary(self) -> dict[str, Any]:
        """Both answers and the gain as a dict that is ready for JSON."""
        of_empty = {name: x for name, x in vars(self.empty).items() if name != "question"}
        logs = {"log_probability": self.log_probability, "empty_log_probability": self.empty_log_probability}
        return {**vars(self.answer), "empty": of_empty, **logs, "gain": self.gain}


def against_empty(
    sleeper: Sleeper, memory: Memory, questions: Sequence[str], *, max_tokens: int | None = None
) -> list[Compared]:
    """Answer as `ask` does from a memory, and from an empty one that sleeps as this one does."""
    empty = Memory.empty(sleeper, memory.config)
    answers, blank = (ask(sleeper, known, questions, max_tokens=max_tokens) for known in (memory, empty))
    logs = [[_log_probability(sleeper, known, answer) for known in (memory, empty)] for answer in answers]
    return [Compared(*row) for row in zip(answers, blank, *zip(*logs, strict=True), strict=True)]


def _log_probability(sleeper: Sleeper, memory: Memory, answer: Answer) -> float:
    prompt, written = (
        torch.tensor([ids], device=sleeper.device) for ids in (sleeper.question(answer.question), answer.ids)
    )
    context = starting_point(sleeper, memory)
    return float(log_probability(sleeper.sleeping, prompt, written, context, memory.config).cpu().double().sum())


@dataclass(frozen=True)
class Examined:
    """A text with questions and right answers: what was answered from its memory, and from an empty one."""

    memory: Memory
    seconds: float  # of reading
    right: tuple[str, ...]
    compared: tuple[Compared, ...]

    @property
    def accuracy(self) -> float:
        """The share of right answers from the memory."""
        return fmean(row.answer.text == wanted for row, wanted in zip(self.compared, self.right, strict=True))

    @property
    def blank_accuracy(self) -> float:
        """The share of right answers from an empty memory."""
        return fmean(row.empty.text == wanted for row, wanted in zip(self.compared, self.right, strict=True))

    def summary(self) -> dict[str, Any]:
        """Numbers and answers as a dict that is ready for JSON."""
        return {
            "tokens": int(self.memory.tokens[0]),
            "passes": int(self.memory.passes[0]),
            "nbytes": self.memory.nbytes,
            "seconds": self.seconds,
            "accuracy": self.accuracy,
            "accuracy_of_empty_memory": self.blank_accuracy,
            "answers": [
                {**row.summary(), "right": right} for row, right in zip(self.compared, self.right, strict=True)
            ],
        }


def examine(sleeper: Sleeper, text: str, questions: Sequence[tuple[str, str]]) -> Examined:
    """Read a text, then ask these questions, of which the right answers are known."""
    begun = time.perf_counter()
    memory = sleep_over(sleeper, [sleeper.text(text)])
    seconds = time.perf_counter() - begun
    compared = against_empty(sleeper, memory, [question for question, _ in questions])
    return Examined(memory, seconds, tuple(answer for _, answer in questions), tuple(compared))
