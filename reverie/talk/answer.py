"""Questions to a model that remembers: each is answered from a copy of the memory, which stays as it is."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from reverie.errors import UserError
from reverie.memory.memory import Memory, sleep_over
from reverie.sleep import Context, SleepConfig, read
from reverie.talk.sleeper import Sleeper

AWAKE = "awake"  # among a memory's notes: tokens heard since the last sleep, as JSON


@dataclass(frozen=True)
class Answer:
    """What was said to a question, and how sure the model was of each token."""

    question: str
    text: str
    ids: tuple[int, ...]
    probabilities: tuple[float, ...]

    @property
    def probability(self) -> float | None:
        """Of an answer of a single token."""
        return self.probabilities[0] if len(self.probabilities) == 1 else None


@torch.no_grad()
def ask(sleeper: Sleeper, memory: Memory, questions: Sequence[str], *, max_tokens: int | None = None) -> list[Answer]:
    """Answer every question by itself, greedily, from a memory of one text; `Memory.empty(sleeper)` is one of nothing.

    A question stands in a window of its own; to a saved chat, after what that had heard since its last sleep.

    Args:
        max_tokens: of an answer; the language's own if absent.

    Raises UserError for words that the model does not know, and for a memory of several texts.
    """
    together: dict[int, list[int]] = defaultdict(list)  # those of equal length are one batch
    asked = [sleeper.question(question) for question in questions]
    for i, ids in enumerate(asked):
        together[len(ids)].append(i)
    answers: dict[int, Answer] = {}
    for places in together.values():
        tokens = torch.tensor([asked[i] for i in places], device=sleeper.device)
        context = starting_point(sleeper, memory, len(places))
        most = max_tokens or sleeper.language.max_answer_tokens
        ids, probabilities = _write(sleeper, tokens, context, memory.config, most)
        for row, i in enumerate(places):
            end = _length(ids[row].tolist(), sleeper.language.end_ids)
            said = tuple(ids[row, :end].tolist())
            answers[i] = Answer(questions[i], sleeper.decode(said), said, tuple(probabilities[row, :end].tolist()))
    return [answers[i] for i in range(len(questions))]


def starting_point(sleeper: Sleeper, memory: Memory, batch: int = 1) -> Context:
    """What the model knows before a question, `batch` times: the memory, and what was heard since its last sleep.

    Raises UserError for a memory of several texts.
    """
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
    """What a conversation had heard since its last sleep when it was saved; for texts that were read, nothing."""
    try:
        ids = json.loads(memory.notes.get(AWAKE, "[]"))
    except (ValueError, RecursionError):
        ids = None
    L = memory.config.window_size
    if not isinstance(ids, list) or len(ids) > L or not all(type(i) is int and 0 <= i < 2**63 for i in ids):
        raise UserError(f'the note "{AWAKE}" of the memory must be a list of token ids, at most {L}')
    return ids


def _write(
    sleeper: Sleeper, tokens: Int[Tensor, "B T"], context: Context, config: SleepConfig, most: int
) -> tuple[Tensor, Tensor]:
    """Tokens and their probabilities, [B, written] each, until every row has ended or `most` are written."""
    logits, context = read(sleeper.sleeping, tokens, context, config, newest_only=True)
    ids, probabilities = list[Tensor](), list[Tensor]()
    ends = torch.tensor(sorted(sleeper.language.end_ids), dtype=torch.long, device=tokens.device)
    over = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    while True:
        probability, newest = logits[:, -1].float().softmax(-1).max(-1)
        ids.append(newest)
        probabilities.append(probability)
        over |= torch.isin(newest, ends)
        if len(ids) == most or bool(over.all()):
            return torch.stack(ids, dim=1), torch.stack(probabilities, dim=1)
        logits, context = read(sleeper.sleeping, newest[:, None], context, config)


def _length(ids: Sequence[int], ends: frozenset[int]) -> int:
    """Tokens up to the one that ends the answer."""
    return next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))


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
        return _share_right(self.answers, self.right)

    @property
    def blank_accuracy(self) -> float:
        return _share_right(self.blank, self.right)

    def summary(self) -> dict[str, Any]:
        """For --json."""
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


def _share_right(answers: Sequence[Answer], right: Sequence[str]) -> float:
    return sum(answer.text == wanted for answer, wanted in zip(answers, right, strict=True)) / len(right)
