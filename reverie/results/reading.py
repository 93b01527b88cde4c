"""What a model answers about pages that it can no longer see: from memory, and from an empty one.

Answers are scored token by token, each after the right ones before it: all are right where greedy decoding would write
the answer. The token that ends an answer counts by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from reverie.model import SleepingModel, numbers, select_rows
from reverie.sleep import Context, SleepConfig, consolidate, wake
from reverie.tasks import DepthScore, Score
from reverie.tasks.reading import ReadingTask, TokenPage, TokenQuestion

_PAGES = 4  # read at a time
_QUESTION_TOKENS = 2048  # asked at a time


class FedPage(NamedTuple):
    """A page, and what a model is fed for its text and each of its questions: token ids [T], or embeddings [T, D]."""

    page: TokenPage
    text: Tensor
    asked: tuple[Tensor, ...]

    @classmethod
    def of(cls, page: TokenPage, device: torch.device | str = "cpu") -> FedPage:
        asked = (torch.tensor(question.prompt + question.answer[:-1], device=device) for question in page.questions)
        return cls(page, torch.tensor(page.tokens, device=device), tuple(asked))


class Kind(NamedTuple):
    """Counts of questions of one kind."""

    questions: int = 0
    right: int = 0
    begun: int = 0  # first token right
    ended: int = 0  # right, and the answer would end there
    right_when_empty: int = 0  # from an empty memory
    right_later: int = 0  # after another page
    asked_later: int = 0  # questions that were asked after another page

    def plus(self, other: Kind) -> Kind:
        return Kind(*(a + b for a, b in zip(self, other, strict=True)))

    def summary(self) -> dict[str, float | int]:
        """Shares of the questions."""
        shares = {name: round(count / self.questions, 5) for name, count in self._asdict().items()}
        shares["right_later"] = round(self.right_later / max(self.asked_later, 1), 5)
        return {**shares, "questions": self.questions, "asked_later": self.asked_later}


@dataclass(frozen=True)
class ReadingScore(Score):
    """A score with the counts of each kind of question; `later` says whether another page came in between."""

    by_kind: dict[str, Kind] = field(default_factory=dict)
    later: bool = False
    plain_text: dict[str, float] = field(default_factory=dict)  # loss of the untouched model and of this one

    def __add__(self, other: Score) -> ReadingScore:
        both, kinds = super().__add__(other), dict(self.by_kind)
        more = other.by_kind if isinstance(other, ReadingScore) else {}
        for name, kind in more.items():
            kinds[name] = kinds.get(name, Kind()).plus(kind)
        counts = both.examples, both.examples_correct, both.tokens_correct, both.by_depth
        return ReadingScore(*counts, kinds, self.later or (isinstance(other, ReadingScore) and other.later))

    __radd__ = __add__

    def summary(self) -> dict[str, Any]:
        total = Kind()
        for kind in self.by_kind.values():
            total = total.plus(kind)
        empty = {"accuracy_when_empty": total.right_when_empty / max(total.questions, 1)}
        later = {"accuracy_later": total.right_later / max(total.asked_later, 1)} if self.later else {}
        kinds = {name: kind.summary() for name, kind in sorted(self.by_kind.items())}
        plain = {"plain_text_loss": self.plain_text} if self.plain_text else {}
        return {**super().summary(), **empty, **later, **plain, "by_kind": kinds}


@torch.no_grad()
def examine_pages(
    model: SleepingModel, task: ReadingTask, sleep: SleepConfig, pages: Sequence[FedPage], later: Sequence[FedPage] = ()
) -> tuple[ReadingScore, int]:
    """Sleep over each page, then ask its questions from its memory and from an empty one; the score, and how many
    passes the pages took.

    Args:
        later: for each page another one. Questions are asked again after that was read too, if it does not say anything
            about the same, and if they have no depth of their own: those may hang on more facts than one.
    """
    total, passes = ReadingScore(later=bool(later)), 0
    for first in range(0, len(pages), _PAGES):
        some, next_ones = pages[first : first + _PAGES], later[first : first + _PAGES]
        context = consolidate(model, torch.stack([fed.text for fed in some]), Context.empty(model), sleep)
        others = None
        if next_ones:
            others = consolidate(model, torch.stack([fed.text for fed in next_ones]), context, sleep)
        total = total + _examine(model, task, sleep, some, next_ones, context, others)
        passes += int(torch.as_tensor(context.passes).expand(len(some)).sum())
    return total, passes


def _examine(
    model: SleepingModel,
    task: ReadingTask,
    sleep: SleepConfig,
    pages: Sequence[FedPage],
    later: Sequence[FedPage],
    context: Context,
    others: Context | None,
) -> ReadingScore:
    asked = [
        (row, question, fed)
        for row, page in enumerate(pages)
        for question, fed in zip(page.page.questions, page.asked, strict=True)
        if len(fed) <= sleep.window_size
    ]
    asked.sort(key=lambda one: len(one[2]))
    size = max(_QUESTION_TOKENS // max((len(fed) for _, _, fed in asked), default=1), 1)
    total, wrong = ReadingScore(), set[int]()
    for start in range(0, len(asked), size):
        part = asked[start : start + size]
        rows = torch.tensor([row for row, _, _ in part], device=part[0][2].device)
        fed = torch.nn.utils.rnn.pad_sequence([fed for _, _, fed in part], batch_first=True)
        questions = [question for _, question, _ in part]
        found = _answers(model, sleep, fed, questions, select_rows(context, rows))
        empty = _answers(model, sleep, fed, questions, Context.empty(model))
        after = None if others is None else _answers(model, sleep, fed, questions, select_rows(others, rows))
        for i, question in enumerate(questions):
            again = after is not None and question.depth is None and question.about not in later[part[i][0]].page.facts
            one = _score(question, task.depth_of(question), found[i], empty[i], after[i] if again and after else None)
            total = total + one
            wrong |= {part[i][0]} if not one.total.questions_correct else set()
    rows_asked = {row for row, _, _ in asked}
    return ReadingScore(
        len(rows_asked),
        len(rows_asked - wrong),
        total.tokens_correct,
        total.by_depth,
        total.by_kind,
        others is not None,
    )


def _answers(
    model: SleepingModel, sleep: SleepConfig, fed: Tensor, questions: Sequence[TokenQuestion], before: Context
) -> list[tuple[Tensor, Tensor]]:
    """For each question, which tokens of its answer are right, and their losses."""
    h, _ = wake(model, fed, before, sleep)
    found = []
    for i, question in enumerate(questions):
        first = len(question.prompt) - 1
        logits = numbers(model.head(h[i, first : first + len(question.answer)])).float()
        targets = torch.tensor(question.answer, device=logits.device)
        found.append(((logits.argmax(-1) == targets).cpu(), F.cross_entropy(logits, targets, reduction="none").cpu()))
    return found


def _score(
    question: TokenQuestion,
    depth: int,
    found: tuple[Tensor, Tensor],
    empty: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor] | None,
) -> ReadingScore:
    """The score of one question."""
    words = len(question.words)
    said, losses = found[0][:words], found[1][:words]
    right = bool(said.all())
    kind = Kind(
        questions=1,
        right=right,
        begun=bool(said[:1].all()),
        ended=right and bool(found[0][words:].all()),
        right_when_empty=bool(empty[0][:words].all()),
        right_later=after is not None and bool(after[0][:words].all()),
        asked_later=after is not None,
    )
    by_depth = {depth: DepthScore(1, int(right), len(said), float(losses.sum()))}
    return ReadingScore(1, int(right), int(said.sum()), by_depth, {question.kind: kind})
