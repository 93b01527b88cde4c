"""GSM-Infinite as a task: word problems of 1 to 30 operations, answered in one forward pass, without their text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache, cached_property, lru_cache
from itertools import product
from math import prod
from random import Random
from statistics import fmean
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from reverie.errors import UserError
from reverie.pretrained import smollm2
from reverie.pretrained.smollm2 import SmolLM2Tokenizer, load_smollm2
from reverie.tasks.base import Batch, Section, Split, TaskSettings, as_batch, draw, uniform
from reverie.tasks.gsm_infinite.core import Core
from reverie.tasks.gsm_infinite.generator import Problem, ProblemConfig, draw_problem
from reverie.tasks.gsm_infinite.language import WordProblems
from reverie.tasks.gsm_infinite.text import question_text
from reverie.tasks.gsm_infinite.words import END, PAD, WordTokenizer, word_tokenizer

_CHANCE_SAMPLE = 400  # problems per number of operations


class GsmInfinite(ProblemConfig, TaskSettings):
    """Task: prompts, padded on the left to the longest, then the answer: digits and an end token.

    Each answer token is predicted at the token before it. `length` is required and counts tokens.

    With `num_questions` above 1 the text ends with up to that many questions, about the asked quantity and others of
    the same core. Their answers are single digits, predicted at the end of each question and never shown.

    Depth is the number of operations. It is drawn uniformly in training, and takes turns in tests.
    """

    depth_name: ClassVar[str] = "operations"

    name: Literal["gsm_infinite"] = "gsm_infinite"
    tokenizer: Literal["smollm2", "words"] = "smollm2"
    num_questions: int = Field(default=1, ge=1, le=100_000, description="about one text, at most")

    @model_validator(mode="after")
    def _fits(self) -> GsmInfinite:
        if self.length is None:
            raise ValueError(
                "length is missing: a model needs the shortest and the longest prompt, such as [2000, 3300]"
            )
        if self.tokenizer == "words" and self.instruction:
            raise ValueError('instruction must be false with tokenizer "words", whose vocabulary has no such words')
        if self.num_questions > 1:
            self._check_many_questions()
        return self

    def _check_many_questions(self) -> None:
        needs = {
            'question_position = "last"': self.question_position == "last",
            'tokenizer = "words"': self.tokenizer == "words",
            'modes = ["forward"]': self.modes == ("forward",),
            "max_value = 9": self.max_value <= 9,
            "min_operations = 1": self.min_operations == 1,  # a text has shallow questions whatever its own
        }
        missing = [need for need, met in needs.items() if not met]
        if missing:
            raise ValueError(f"num_questions {self.num_questions} needs {' and '.join(missing)}, else it must be 1")

    @property
    def vocab_size(self) -> int:
        return smollm2.VOCAB_SIZE if self.tokenizer == "smollm2" else word_tokenizer(self.worlds).vocab_size

    @property
    def answer_is_last(self) -> bool:
        return self.num_questions == 1

    def batch(self, split: Split, seed: int, step: int, examples: range, max_depth: int | None = None) -> Batch:
        """Make examples as a `Batch` [B, longest prompt + answer].

        In training, `max_depth` limits the number of operations drawn. With several questions it limits the questions
        alone, and texts are as hard as without it.

        Raises:
            UserError: no problem fits the config, or SmolLM2's tokenizer is not installed.
        """
        deepest = self.max_operations if max_depth is None or split == "test" else min(max_depth, self.max_operations)
        operations = self._operations(split, seed, step, examples, deepest)
        make = _example if split == "train" else _held_out_example
        rows = [make(self, split, seed, step, i, n, deepest) for i, n in zip(examples, operations, strict=True)]
        columns = zip(*rows, strict=True) if rows else [()] * len(_Row._fields)
        shape = (len(rows), self.sequence_length)
        return as_batch(*(np.array(column, dtype=np.int64).reshape(shape) for column in columns))

    def problem(self, split: Split, seed: int, step: int, index: int, operations: int) -> Problem:
        """Draw the problem of one example."""
        reserved = self._questions_length if self.num_questions > 1 else 0
        return draw_problem(
            self, split, seed, step, index, operations, measure=token_counter(self.text), reserved=reserved
        )

    def language(self) -> WordProblems:
        last = self.sections()[-1].length
        return WordProblems(
            self.text, num_questions=self.num_questions, last=last, pad_id=self.pad_id, end_id=self.end_id
        )

    def held_out_text(self, index: int) -> tuple[str, tuple[tuple[str, str], ...]]:
        """The facts of a held-out example, a sentence a line, and what is asked about them."""
        if self.num_questions == 1:
            raise UserError("there are no texts with several questions where num_questions is 1")
        batch = self.batch("test", seed=0, step=0, examples=range(index, index + 1))
        tokens, start = batch.tokens[0], self.sections()[0].length
        facts = self.text.decode(tokens[:start].tolist()).replace(". ", ".\n").replace("Problem: ", "Problem:\n")
        asked, begin = list[tuple[str, str]](), start
        for end in (batch.loss_mask[0].nonzero()[:, 0] + 1).tolist():
            answer = self.text.decode([int(batch.targets[0, end - 1])])
            asked.append((self.text.decode(tokens[begin:end].tolist()), answer))
            begin = end
        return facts, tuple(asked)

    def depths(self) -> range:
        return range(self.min_operations, self.max_operations + 1)

    def chance(self) -> dict[int, float]:
        """Accuracy, by number of operations, of the most frequent answer, to within a percentage point or two.

        Measured on a sample of training's problems, without padding, which changes no answer.
        """
        answers: dict[int, Counter[int]] = {depth: Counter() for depth in self.depths()}
        for asked in self._sample:
            for operations, answer in asked:
                answers[operations][answer] += 1
        return {depth: count.most_common(1)[0][1] / count.total() for depth, count in answers.items()}

    def chance_exact(self) -> float:
        """Share of texts for which these answers are right for all questions."""
        chance = self.chance()
        return fmean(prod(chance[operations] for operations, _ in asked) for asked in self._sample)

    def token_names(self) -> list[str]:
        return self.text.token_names()

    def sections(self) -> list[Section]:
        assert self.length is not None
        if self.num_questions == 1:
            # Without the end token, which is only predicted; SmolLM2's space before digits is a token of its own.
            answer = len(str(self.max_value)) + (self.tokenizer == "smollm2")
            return [Section("prompt", self.length[1]), Section("answer", answer)]
        context = self.length[1] - self._questions_length
        return [Section("context", context), Section("questions", self._questions_length)]

    @property
    def text(self) -> SmolLM2Tokenizer | WordTokenizer:
        """The tokenizer."""
        return load_smollm2() if self.tokenizer == "smollm2" else word_tokenizer(self.worlds)

    @property
    def pad_id(self) -> int:
        """Token id of padding."""
        return self.text.special_ids["<|im_start|>" if self.tokenizer == "smollm2" else PAD]

    @property
    def end_id(self) -> int:
        """Token id that ends an answer."""
        return self.text.special_ids["<|endoftext|>" if self.tokenizer == "smollm2" else END]

    @property
    def _question_length(self) -> int:
        """Tokens of the longest question, with the tokenizer "words"."""
        return 8 if "hard" in self.levels else 6

    @property
    def _questions_length(self) -> int:
        return self.num_questions * self._question_length

    def _operations(self, split: Split, seed: int, step: int, examples: range, deepest: int) -> list[int]:
        depths = self.depths()
        if split == "test":
            return [depths[i % len(depths)] for i in examples]
        choice = len(depths) if self.num_questions > 1 else max(deepest - depths[0] + 1, 1)
        return [depths[int(u * choice)] for u in uniform(draw(split, seed, step, examples, 1))[:, 0]]

    @cached_property
    def _sample(self) -> list[list[tuple[int, int]]]:
        """(operations, answer) of all questions, by problem of a sample."""
        plain = ProblemConfig.model_validate(self.model_dump(include={*ProblemConfig.model_fields} - {"length"}))
        sample = []
        for depth, index in product(self.depths(), range(_CHANCE_SAMPLE)):
            core = draw_problem(plain, "train", 2**32 - 1, depth, index, depth).core
            asked = [(core.asked, depth)]
            if self.num_questions > 1:
                asked = asked_about(Random(index), core, self.num_questions, self.max_operations)
            sample.append([(operations, core.values[quantity]) for quantity, operations in asked])
        return sample


class _Row(NamedTuple):
    """Fields of a `Batch` for one example, each [T]."""

    tokens: np.ndarray
    targets: np.ndarray
    depth: np.ndarray
    question: np.ndarray


def _example(task: GsmInfinite, split: Split, seed: int, step: int, index: int, operations: int, deepest: int) -> _Row:
    problem = task.problem(split, seed, step, index, operations)
    encode = _encode(task.text)
    context = [token for piece in problem.context for token in encode(piece)]
    if task.num_questions == 1:
        return _one_question(task, problem, context)
    rng = Random(f"{split}/{seed}/{step}/{index}/questions")
    return _many_questions(task, problem, context, asked_about(rng, problem.core, task.num_questions, deepest))


# A training run evaluates the same examples many times.
_held_out_example: Callable[..., _Row] = cache(_example)


def _blank(task: GsmInfinite) -> _Row:
    T = task.sequence_length
    zeros = np.zeros(T, np.int32)
    return _Row(np.full_like(zeros, task.pad_id), zeros.copy(), zeros.copy(), np.full_like(zeros, -1))


def _one_question(task: GsmInfinite, problem: Problem, context: list[int]) -> _Row:
    row, encode = _blank(task), _encode(task.text)
    prompt = context + [token for piece in problem.cue for token in encode(piece)]
    answer = task.text.encode(f" {problem.answer}")
    start = task.sections()[0].length
    row.tokens[start - len(prompt) : start] = prompt
    row.tokens[start : start + len(answer)] = answer
    scored = slice(start - 1, start + len(answer))
    row.targets[scored] = [*answer, task.end_id]
    row.depth[scored] = problem.operations
    row.question[scored] = 0
    return row


def _many_questions(task: GsmInfinite, problem: Problem, context: list[int], asked: list[tuple[int, int]]) -> _Row:
    row, encode = _blank(task), _encode(task.text)
    core, start = problem.core, task.sections()[0].length
    row.tokens[start - len(context) : start] = context
    for index, (quantity, operations) in enumerate(asked):
        tokens = encode(" " + question_text(core.quantities[quantity], core.world))
        start += task._question_length
        row.tokens[start - len(tokens) : start] = tokens
        row.targets[start - 1] = encode(f" {core.values[quantity]}")[0]
        row.depth[start - 1] = operations
        row.question[start - 1] = index
    return row


def asked_about(rng: Random, core: Core, number: int, deepest: int) -> list[tuple[int, int]]:
    """Draw up to `number` questions as (quantity, operations), in random order.

    They are the problem's own question if it is not too deep, and others, with operations spread as evenly as the core
    allows.
    """
    by_depth: dict[int, list[int]] = {}
    needs: dict[int, set[int]] = {}
    chosen: list[tuple[int, int]] = []
    for quantity in range(len(core.quantities)):
        operations = sum(core.operations(q) for q in _needs(core, quantity, needs))
        if core.values[quantity] > 9 or operations > deepest:
            continue
        if quantity == core.asked:
            chosen.append((quantity, operations))
        else:
            by_depth.setdefault(operations, []).append(quantity)
    while by_depth and len(chosen) < number:
        operations = rng.choice(sorted(by_depth))
        quantities = by_depth[operations]
        chosen.append((quantities.pop(rng.randrange(len(quantities))), operations))
        if not quantities:
            del by_depth[operations]
    rng.shuffle(chosen)
    return chosen


def _needs(core: Core, quantity: int, known: dict[int, set[int]]) -> set[int]:
    """The quantity and all that it depends on; `known` caches results."""
    if quantity not in known:
        known[quantity] = {quantity}.union(*(_needs(core, q, known) for q in core.operands(quantity)))
    return known[quantity]


@cache
def _encode(text: SmolLM2Tokenizer | WordTokenizer):
    """A cached `encode` for pieces of text, of which there are few."""
    return lru_cache(maxsize=2**16)(text.encode)


@cache
def token_counter(text: SmolLM2Tokenizer | WordTokenizer):
    """A function that counts the tokens of a piece."""
    encode = _encode(text)
    return lambda piece: len(encode(piece))
