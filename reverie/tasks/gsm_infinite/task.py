"""GSM-Infinite as a task: word problems of 1 to 30 operations, answered in one forward pass after the text is gone."""

from __future__ import annotations

from collections import Counter
from functools import cache, cached_property, lru_cache
from itertools import product
from math import prod
from random import Random
from statistics import fmean
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from reverie.pretrained import smollm2
from reverie.pretrained.smollm2 import SmolLM2Tokenizer, load_smollm2
from reverie.tasks.base import Batch, Section, Split, as_batch, draw, uniform
from reverie.tasks.gsm_infinite.core import Core
from reverie.tasks.gsm_infinite.generator import Problem, ProblemConfig, draw_problem
from reverie.tasks.gsm_infinite.text import question_text
from reverie.tasks.gsm_infinite.words import END, PAD, WordTokenizer, word_tokenizer

_CHANCE_SAMPLE = 400  # problems per number of operations


class GsmInfinite(ProblemConfig):
    """Prompts, padded on the left to the longest, then the answer: digits and an end token, each predicted by the token
    before it. `length` counts tokens here, and must be given.

    With `num_questions` above 1 the question at the end gives way to that many, about the asked quantity and others of
    the same core. Their answers are single digits, predicted where each question ends and never shown.

    Operations are uniform in training, and take turns in tests. Depth is the number of operations.
    """

    name: Literal["gsm_infinite"] = "gsm_infinite"
    tokenizer: Literal["smollm2", "words"] = "smollm2"
    num_questions: int = Field(default=1, ge=1, description="about one text, at most")

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
    def sequence_length(self) -> int:
        return sum(section.length for section in self.sections())

    @property
    def answer_is_last(self) -> bool:
        return self.num_questions == 1

    def batch(self, split: Split, seed: int, step: int, examples: range, max_depth: int | None = None) -> Batch:
        """Examples as a `Batch` [B, longest prompt + answer].

        In training, `max_depth` draws operations up to that only; of several questions, it leaves out those that take
        more, about texts that are as hard as ever.
        """
        deepest = self.max_operations if max_depth is None or split == "test" else min(max_depth, self.max_operations)
        operations = self._operations(split, seed, step, examples, deepest)
        rows = [self._row(split, seed, step, i, n, deepest) for i, n in zip(examples, operations, strict=True)]
        columns = zip(*rows, strict=True) if rows else [()] * len(_Row._fields)
        shape = (len(rows), self.sequence_length)
        return as_batch(*(np.array(column, dtype=np.int64).reshape(shape) for column in columns))

    def problem(self, split: Split, seed: int, step: int, index: int, operations: int) -> Problem:
        """The problem of one example."""
        reserved = self._questions_length if self.num_questions > 1 else 0
        return draw_problem(self, split, seed, step, index, operations, measure=_measure(self.text), reserved=reserved)

    def depths(self) -> range:
        return range(self.min_operations, self.max_operations + 1)

    def chance(self) -> dict[int, float]:
        """By operations: accuracy of the one answer that is right most often, to a point or two.

        Measured on a sample of training's problems, without padding, which changes no answer.
        """
        answers: dict[int, Counter[int]] = {depth: Counter() for depth in self.depths()}
        for asked in self._sample:
            for operations, answer in asked:
                answers[operations][answer] += 1
        return {depth: count.most_common(1)[0][1] / count.total() for depth, count in answers.items()}

    def chance_exact(self) -> float:
        """How often those answers are right for all questions about a text."""
        chance = self.chance()
        return fmean(prod(chance[operations] for operations, _ in asked) for asked in self._sample)

    def token_names(self) -> list[str]:
        return self.text.token_names()

    def sections(self) -> list[Section]:
        assert self.length is not None
        if self.num_questions == 1:
            return [Section("prompt", self.length[1]), Section("answer", self._answer_length)]
        context = self.length[1] - self._questions_length
        return [Section("context", context), Section("questions", self._questions_length)]

    @property
    def text(self) -> SmolLM2Tokenizer | WordTokenizer:
        """Between text and token ids."""
        return load_smollm2() if self.tokenizer == "smollm2" else word_tokenizer(self.worlds)

    @property
    def pad_id(self) -> int:
        """Fills up on the left."""
        return _special(self, PAD, "<|im_start|>")

    @property
    def end_id(self) -> int:
        """Ends an answer."""
        return _special(self, END, "<|endoftext|>")

    @property
    def _answer_length(self) -> int:
        """Tokens of the longest answer, as input: the end token is only predicted."""
        digits = len(str(self.max_value))
        return digits + (self.tokenizer == "smollm2")  # there, a space stands on its own before digits

    @property
    def _question_length(self) -> int:
        """Tokens of the longest question, in words."""
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

    def _row(self, split: Split, seed: int, step: int, index: int, operations: int, deepest: int) -> _Row:
        """Training looks at the same held-out examples again and again, so they are kept."""
        if split == "train":
            return _example(self, split, seed, step, index, operations, deepest)
        key = (seed, step, index)
        if key not in self._held_out:
            self._held_out[key] = _example(self, split, seed, step, index, operations, deepest)
        return self._held_out[key]

    @cached_property
    def _held_out(self) -> dict[tuple[int, int, int], _Row]:
        return {}

    @cached_property
    def _sample(self) -> list[list[tuple[int, int]]]:
        """(operations, answer) of what is asked about each of some problems."""
        plain = ProblemConfig.model_validate(self.model_dump(include={*ProblemConfig.model_fields} - {"length"}))
        sample = []
        for depth, index in product(self.depths(), range(_CHANCE_SAMPLE)):
            core = draw_problem(plain, "train", 2**32 - 1, depth, index, depth).core
            asked = [(core.asked, depth)]
            if self.num_questions > 1:
                asked = _asked(Random(index), core, self.num_questions, self.max_operations)
            sample.append([(operations, core.values[quantity]) for quantity, operations in asked])
        return sample


class _Row(NamedTuple):
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
    return _many_questions(task, problem, context, _asked(rng, problem.core, task.num_questions, deepest))


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


def _asked(rng: Random, core: Core, number: int, deepest: int) -> list[tuple[int, int]]:
    """(quantity, operations) of up to `number` questions in random order: the problem's own if it is not too deep, and
    others whose operations are spread as evenly as the core allows."""
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
    """A quantity and all that it is computed from."""
    if quantity not in known:
        known[quantity] = {quantity}.union(*(_needs(core, q, known) for q in core.operands(quantity)))
    return known[quantity]


def _special(task: GsmInfinite, word: str, smol: str) -> int:
    text = task.text
    return text.special_ids[smol] if isinstance(text, SmolLM2Tokenizer) else text.special_ids[word]


@cache
def _encode(text: SmolLM2Tokenizer | WordTokenizer):
    """Token ids of a piece: pieces are few, so each is encoded once."""
    return lru_cache(maxsize=2**16)(text.encode)


@cache
def _measure(text: SmolLM2Tokenizer | WordTokenizer):
    encode = _encode(text)
    return lambda piece: len(encode(piece))
