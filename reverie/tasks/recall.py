"""Recall, for pretrained models: facts in plain English ("The apple is red."), asked for windows later."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from reverie.pretrained import smollm2
from reverie.pretrained.smollm2 import load_smollm2
from reverie.tasks.base import Batch, Section, Split, TaskSettings, as_batch, draw
from reverie.tasks.language import Language, one_line

# Each word with the space before it is one token of SmolLM2.
_NOUNS = """
apple bag ball basket bean bear bed bell bench bird boat book boot bottle bowl box branch brick bridge brush bucket bus
button cabin cake camera candle cap car carpet castle cat chair cheese chicken church clock coat coin cow crown cup
curtain desk dish dog doll door dress drum duck egg fence fish flag flower fork fox frog gate glove goat guitar hammer
hat horse house island jacket key knife ladder lamp leaf lion lock map mask mirror mouse needle nest net onion oven owl
pan pencil phone piano pig pillow pipe plate pot purse queen rabbit radio ring rope sheep shelf ship shirt shoe snake
soap sock spoon statue stove table tent ticket tie tiger tomato towel tower toy train tree truck wagon wheel whistle
window
"""
_VALUES = "red blue green yellow black white brown gray pink purple orange gold silver violet tan navy"
NOUNS, VALUES = tuple(_NOUNS.split()), tuple(_VALUES.split())

# A sentence, " The apple is red.", and the positions of its words.
SENTENCE_LENGTH = 5
_NOUN, _IS, _VALUE = 1, 2, 3


class Sentences(Language):
    """Language of Recall: plain English in SmolLM2's tokens; "The apple is" asks for one word."""

    max_answer_tokens = 1

    def __init__(self) -> None:
        self._text = load_smollm2()

    def encode(self, text: str) -> list[int]:
        return self._text.encode(one_line(text))

    def is_question(self, text: str) -> bool:
        return not text.rstrip().endswith(".")

    def decode(self, ids: Sequence[int]) -> str:
        return self._text.decode(ids).strip()


class Recall(TaskSettings):
    """Task: `num_facts` sentences like " The apple is red.", then `num_questions` that repeat some of them.

    Every sentence is 5 tokens, so that facts align with windows of a multiple of 5. The output predicts the next token
    and is scored at the " is" of a question, where it must be the value; the value follows as input, since no fact is
    asked for twice. The nouns of a text are distinct, and each value is drawn uniformly from `num_values`.

    Depth is the distance of a fact: facts are split into `num_distances` equal groups, of which the newest has depth 1.
    Training asks for any facts; in tests depths take turns, and so do their positions among the questions.

    Training and tests draw from different random streams. No text is held out, but repetitions are unlikely: with 8
    facts and the default values there are more than 10^26 texts.
    """

    depth_name: ClassVar[str] = "stretches back"

    name: Literal["recall"] = "recall"
    num_facts: int = Field(ge=1, le=len(NOUNS))
    num_questions: int = Field(ge=1, le=100_000, description="about facts that differ")
    num_values: int = Field(default=len(VALUES), ge=2, le=len(VALUES), description="colours that occur")
    num_distances: int = Field(default=2, ge=1, le=100_000, description="groups of facts, each of one depth")

    @model_validator(mode="after")
    def _fits(self) -> Recall:
        if self.num_facts % self.num_distances:
            raise ValueError(
                f"num_facts {self.num_facts} must be a multiple of num_distances {self.num_distances}, "
                f"so that all groups of facts are equal"
            )
        if self.num_questions > self.num_facts:
            raise ValueError(
                f"num_questions {self.num_questions} must not exceed num_facts {self.num_facts}: "
                f"a fact is asked for once at most"
            )
        return self

    @property
    def vocab_size(self) -> int:
        return smollm2.VOCAB_SIZE

    def batch(self, split: Split, seed: int, step: int, examples: range, max_depth: int | None = None) -> Batch:
        """Make examples as a `Batch` [B, (num_facts + num_questions) * 5]; question i is the i-th of its section.

        In training, `max_depth` asks for facts of at most that depth. If there are fewer of them than questions, the
        remaining questions are about deeper facts and unscored.

        Raises:
            UserError: SmolLM2's tokenizer is not installed.
        """
        deepest = self.num_distances if max_depth is None or split == "test" else max(max_depth, 1)
        sizes = [len(NOUNS), self.num_facts, self.num_facts]
        words = draw(split, seed, step, examples, sum(sizes))
        of_nouns, of_values, of_asked = np.split(words, np.cumsum(sizes)[:-1], axis=1)
        nouns = np.argsort(of_nouns, axis=1)[:, : self.num_facts]
        values = (of_values % np.uint64(self.num_values)).astype(np.int64)
        asked = self._in_turn(of_asked, examples) if split == "test" else self._any(of_asked, deepest)

        asked_nouns, answers = (np.take_along_axis(of, asked, axis=1) for of in (nouns, values))
        depth = self._depth_of_fact[asked]
        scored = depth <= deepest
        return as_batch(
            tokens=np.concatenate([_sentences(nouns, values), _sentences(asked_nouns, answers)], axis=1),
            targets=self._at_answers(_ids().values[answers], scored, unscored=0),
            depth=self._at_answers(depth, scored, unscored=0),
            question=self._at_answers(np.arange(self.num_questions), scored, unscored=-1),
        )

    def depths(self) -> range:
        return range(1, self.num_distances + 1)

    def chance(self) -> dict[int, float]:
        """1 / num_values at each depth: values are independent of all else."""
        return dict.fromkeys(self.depths(), 1 / self.num_values)

    def chance_exact(self) -> float:
        """Chance of guessing all questions of a text: values of different facts are independent."""
        return (1 / self.num_values) ** self.num_questions

    def language(self) -> Sentences:
        return Sentences()

    def token_names(self) -> list[str]:
        return load_smollm2().token_names()

    def sections(self) -> list[Section]:
        return [
            Section("facts", self.num_facts * SENTENCE_LENGTH),
            Section("questions", self.num_questions * SENTENCE_LENGTH),
        ]

    @property
    def _group(self) -> int:
        return self.num_facts // self.num_distances

    @property
    def _depth_of_fact(self) -> np.ndarray:
        """Depth of each fact, first to last, [num_facts]."""
        return self.num_distances - np.arange(self.num_facts) // self._group

    def _any(self, words: np.ndarray, deepest: int) -> np.ndarray:
        """Indices of the facts asked for, [B, num_questions], from words [B, num_facts]; too deep ones come last."""
        order = np.argsort(words, axis=1)
        too_deep = self._depth_of_fact[order] > deepest
        last = np.argsort(too_deep, axis=1, kind="stable")
        return np.take_along_axis(order, last, axis=1)[:, : self.num_questions]

    def _in_turn(self, words: np.ndarray, examples: range) -> np.ndarray:
        """Indices as in `_any`, where question i of example e has depth 1 + (e + i) mod num_distances.

        Examples begin with different depths, so that no depth is always asked for first.
        """
        shape = len(words), self.num_distances, self._group
        within = np.argsort(words.reshape(shape), axis=2)  # a random order of each group, oldest group first
        first = np.array(examples, dtype=np.int64)[:, None]
        question = np.arange(self.num_questions)
        group = self.num_distances - 1 - (first + question) % self.num_distances
        return group * self._group + within[np.arange(len(words))[:, None], group, question // self.num_distances]

    def _at_answers(self, of_question: np.ndarray, scored: np.ndarray, unscored: int) -> np.ndarray:
        """An array [B, sequence_length] of `unscored`, with `of_question` where a scored value is predicted."""
        shape = len(scored), self.num_facts + self.num_questions, SENTENCE_LENGTH
        out = np.full(shape, unscored, dtype=np.int64)
        out[:, self.num_facts :, _IS] = np.where(scored, of_question, unscored)
        return out.reshape(len(scored), self.sequence_length)


class _Ids(NamedTuple):
    """Token ids of all words; `nouns` and `values` are arrays in the order of NOUNS and VALUES."""

    the: int
    nouns: np.ndarray
    is_: int
    values: np.ndarray
    stop: int


@lru_cache(maxsize=1)
def _ids() -> _Ids:
    encode = load_smollm2().encode

    def of_one(word: str) -> int:
        ids = encode(word)
        if len(ids) != 1:
            raise ValueError(f"{word!r} is {len(ids)} tokens of SmolLM2, but facts of equal length need one")
        return ids[0]

    nouns, values = (np.array([of_one(f" {word}") for word in words]) for words in (NOUNS, VALUES))
    return _Ids(of_one(" The"), nouns, of_one(" is"), values, of_one("."))


def _sentences(nouns: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Tokens [B, n * 5] of n sentences per row, from indices [B, n] into NOUNS and VALUES."""
    ids = _ids()
    tokens = np.empty((*nouns.shape, SENTENCE_LENGTH), dtype=np.int64)
    tokens[...] = ids.the, -1, ids.is_, -1, ids.stop
    tokens[..., _NOUN] = ids.nouns[nouns]
    tokens[..., _VALUE] = ids.values[values]
    return tokens.reshape(len(nouns), nouns.shape[1] * SENTENCE_LENGTH)
