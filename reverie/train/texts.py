"""The batches that an adapter learns from: texts put together anew from a pool of pages, and questions about them.

Which pages, in which order, and which questions is a function of (seed, step). A question is asked only if no page that
comes later says something else about the same thing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from reverie.recipe.adapt import AdaptConfig
from reverie.tasks.reading import TokenPage, TokenQuestion


class KnownPage(Protocol):
    """Protocol of a page with what the frozen beginning made of it (`hf.frozen.PageStates`)."""

    page: TokenPage
    states: Tensor
    asked: tuple[Tensor, ...]
    taught: tuple[Tensor | None, ...]


class Asked(NamedTuple):
    """A question about one text of a batch."""

    row: int
    question: TokenQuestion
    states: Tensor  # [T, D] of prompt and answer without the last token
    taught: Tensor | None  # [A, D], what a teacher made of the answer
    source: int | None  # token of the text where the answer begins, if it stands there token by token


class TextBatch(NamedTuple):
    """Texts [R, T], their states [R, T, D], and questions about them."""

    tokens: Tensor
    states: Tensor
    asked: list[Asked]


class Plan(NamedTuple):
    """The pages of each text of a step, by index in the pool, and the seed of the choice of questions.

    Windows of plain text are numbered after the pages of the pool.
    """

    pages: list[list[int]]
    seed: tuple[int, int]


def pages_in_use(config: AdaptConfig, steps: int, step: int) -> int:
    """How many pages of the pool a step draws from: more and more, then all."""
    first = config.start.pages if config.start else 1
    return min(config.pool, max(math.ceil(config.pool * (step + 1) / (config.pool_full_at * steps)), first))


def plan_texts(config: AdaptConfig, steps: int, batch_size: int, seed: int, step: int, plain: int = 0) -> Plan:
    """The texts of a step: about `batch_size` pages in all, and equally many of the `plain` windows among each."""
    rng = np.random.default_rng((seed, step, 0))
    known = pages_in_use(config, steps, step)
    each = min(int(rng.integers(config.pages[0], config.pages[1] + 1)), known)
    rows = max(batch_size // each, 1)
    texts: list[list[int]] = [rng.choice(known, each, replace=False).tolist() for _ in range(rows)]
    among = int(rng.integers(config.plain_among[0], config.plain_among[1] + 1))
    for text in texts:
        for window in rng.integers(plain, size=among) if among else ():
            text.insert(int(rng.integers(len(text) + 1)), config.pool + int(window))
    return Plan(texts, (seed, step))


def put_together(
    plan: Plan, pool: Mapping[int, KnownPage], rows: range, questions: int, deepest: int, longest: int
) -> TextBatch:
    """Some of the texts of a step.

    Args:
        pool: its pages and windows of plain text, by index.
        rows: of the plan; the questions about each depend on the text alone.
        questions: about a page, on average, at most.
        deepest: question asked, where questions have depths of their own.
        longest: tokens of a question with its answer.
    """
    texts, asked = [], list[Asked]()
    for place, row in enumerate(rows):
        pages = [pool[i] for i in plan.pages[row]]
        texts.append(pages)
        candidates = [
            one
            for i, known in enumerate(pages)
            for one in _about(known, i, pages, place)
            if (one.question.depth or 0) <= deepest and len(one.states) <= longest
        ]
        rng = np.random.default_rng((*plan.seed, 1, row))
        most = questions * sum(bool(known.page.questions) for known in pages)
        asked += [candidates[i] for i in _drawn(candidates, deepest, rng)[:most]]
    tokens = torch.tensor([[token for known in pages for token in known.page.tokens] for pages in texts])
    return TextBatch(tokens, torch.stack([torch.cat([known.states for known in pages]) for pages in texts]), asked)


def _drawn(candidates: Sequence[Asked], deepest: int, rng: np.random.Generator) -> np.ndarray:
    """Questions in random order. Where they have depths of their own, those of the deeper half come three times as
    often as the others: what is learnt last needs the most examples."""
    depths = [one.question.depth for one in candidates]
    if not depths or None in depths or deepest < 2:
        return rng.permutation(len(candidates))
    often = np.array([3.0 if 2 * (depth or 0) > deepest else 1.0 for depth in depths])
    return rng.choice(len(candidates), len(candidates), replace=False, p=often / often.sum())


def _about(known: KnownPage, index: int, pages: Sequence[KnownPage], row: int) -> list[Asked]:
    """The questions of one page that have the same answer when the others are read too."""
    later = frozenset().union(*(other.page.facts for other in pages[index + 1 :]))
    others = later.union(*(other.page.facts for other in pages[:index]))
    before = sum(len(other.page.tokens) for other in pages[:index])
    found = []
    for question, states, taught in zip(known.page.questions, known.asked, known.taught, strict=True):
        if question.about in (others if question.source is None and question.depth is None else later):
            continue
        if question.depth is not None and any(other.page.questions for other in pages[index + 1 :]):
            continue  # it may hang on more facts than one, as several hops do
        source = question.source
        aligned = source is not None and known.page.tokens[slice(*source)] == question.words
        aligned = aligned and question.depth in (None, 1)  # after several hops no token of the question is beside it
        found.append(Asked(row, question, states, taught, before + source[0] if aligned and source else None))
    return found


def buckets(asked: Sequence[Asked], count: int) -> list[list[Asked]]:
    """The questions by length, in so many parts of equal number."""
    order = sorted(asked, key=lambda one: len(one.states))
    parts = [order[i * len(order) // count : (i + 1) * len(order) // count] for i in range(count)]
    return [part for part in parts if part]


class QuestionBatch(NamedTuple):
    """Questions side by side, padded after their ends, and the places at which answers are predicted."""

    tokens: Tensor  # [Q, T]
    states: Tensor  # [Q, T, D]
    rows: Tensor  # [Q], the text that each is about
    at: Tensor  # [2, A], question and place
    targets: Tensor  # [A]
    ends: Tensor  # [A], true where the token ends the answer
    sources: Tensor  # [A], the token of the text where it stands, -100 where there is none
    taught: Tensor | None  # [A, D], what a teacher made of them

    def to(self, device: torch.device) -> QuestionBatch:
        return QuestionBatch(*(None if x is None else x.to(device) for x in self))  # pyright: ignore[reportArgumentType]


def side_by_side(asked: Sequence[Asked], begun: int = 0) -> QuestionBatch:
    """Questions as one batch, without their first `begun` tokens."""
    longest, width = max(len(one.states) for one in asked) - begun, asked[0].states.shape[-1]
    tokens = torch.zeros(len(asked), longest, dtype=torch.long)
    states = torch.zeros(len(asked), longest, width, dtype=asked[0].states.dtype)
    at, targets, ends, sources = [], [], [], []
    for i, one in enumerate(asked):
        prompt, answer = one.question.prompt, one.question.answer
        tokens[i, : len(one.states) - begun] = torch.tensor([*prompt, *answer[:-1]][begun:])
        states[i, : len(one.states) - begun] = one.states[begun:]
        for j, token in enumerate(answer):
            at.append((i, len(prompt) - 1 - begun + j))
            targets.append(token)
            ends.append(j == len(one.question.words))
            sources.append(-100 if one.source is None or ends[-1] else one.source + j)
    rows = torch.tensor([one.row for one in asked])
    return QuestionBatch(
        tokens,
        states,
        rows,
        torch.tensor(at).T,
        torch.tensor(targets),
        torch.tensor(ends),
        torch.tensor(sources),
        None if asked[0].taught is None else torch.cat([one.taught for one in asked]),  # pyright: ignore[reportArgumentType]
    )
