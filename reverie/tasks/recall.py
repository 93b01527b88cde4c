"""Recall: what colour is the apple? Facts in plain English, asked for windows later; for pretrained models."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from reverie.pretrained import smollm2
from reverie.pretrained.smollm2 import load_smollm2
from reverie.tasks.base import Batch, Section, Split, as_batch, draw

# With the space before it, each word is one token of SmolLM2.
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

# A sentence, " The apple is red.", and where its words stand in it.
SENTENCE_LENGTH = 5
_NOUN, _IS, _VALUE = 1, 2, 3


class Recall(BaseModel):
    """`num_facts` sentences like " The apple is red.", then `num_questions` more that say some of them again.

    Every sentence is 5 tokens, so facts and windows of a multiple of that line up. The output predicts the next token
    and is scored at the " is" of a question, where it must be the value; that follows as input, for no fact is asked
    for twice. The nouns of a text are distinct, each value is drawn uniformly from `num_values`, anew in every text.

    Depth is how far back a fact stands: facts are split into `num_distances` equal stretches, of which the newest is
    depth 1. Training asks for any facts; in tests depths take turns, and so do their places among the questions.

    Training and tests draw from streams of their own. No text is kept from training, but two alike will not be met:
    from 8 facts on with the default values there are more than 10^26.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["recall"] = "recall"
    num_facts: int = Field(ge=1, le=len(NOUNS))
    num_questions: int = Field(ge=1, description="about facts that differ")
    num_values: int = Field(default=len(VALUES), ge=2, le=len(VALUES), description="colours that occur")
    num_distances: int = Field(default=2, ge=1, description="stretches of facts, each a depth")

    @model_validator(mode="after")
    def _fits(self) -> Recall:
        if self.num_facts % self.num_distances:
            raise ValueError(
                f"num_facts {self.num_facts} must be a multiple of num_distances {self.num_distances}, "
                f"so that all stretches are equal"
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

    @property
    def sequence_length(self) -> int:
        return (self.num_facts + self.num_questions) * SENTENCE_LENGTH

    @property
    def answer_is_last(self) -> bool:
        return False

    def batch(self, split: Split, seed: int, step: int, examples: range, max_depth: int | None = None) -> Batch:
        """Examples as a `Batch` [B, (num_facts + num_questions) * 5]; question i is the i-th sentence of its section.

        In training, `max_depth` asks for facts of that depth at most. If these are fewer than the questions, the last
        questions are about older ones and unscored.

        Raises UserError if SmolLM2's tokenizer is not installed.
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
        """Values are independent of all else, so at each depth any guess is right equally often."""
        return dict.fromkeys(self.depths(), 1 / self.num_values)

    def chance_exact(self) -> float:
        """Facts that differ have independent values."""
        return (1 / self.num_values) ** self.num_questions

    def token_names(self) -> list[str]:
        return load_smollm2().token_names()

    def sections(self) -> list[Section]:
        return [
            Section("facts", self.num_facts * SENTENCE_LENGTH),
            Section("questions", self.num_questions * SENTENCE_LENGTH),
        ]

    @property
    def _stretch(self) -> int:
        """Facts of one depth."""
        return self.num_facts // self.num_distances

    @property
    def _depth_of_fact(self) -> np.ndarray:
        """[num_facts], first to last."""
        return self.num_distances - np.arange(self.num_facts) // self._stretch

    def _any(self, words: np.ndarray, deepest: int) -> np.ndarray:
        """Which facts are asked for, [B, num_questions], from random words [B, num_facts]; too deep ones come last."""
        order = np.argsort(words, axis=1)
        too_deep = self._depth_of_fact[order] > deepest
        last = np.argsort(too_deep, axis=1, kind="stable")
        return np.take_along_axis(order, last, axis=1)[:, : self.num_questions]

    def _in_turn(self, words: np.ndarray, examples: range) -> np.ndarray:
        """As `_any`, but question i of example e has depth 1 + (e + i) mod num_distances.

        The next example goes on with the next depth, so that no depth is always the first to be asked for.
        """
        shape = len(words), self.num_distances, self._stretch
        within = np.argsort(words.reshape(shape), axis=2)  # a random order of each stretch, oldest stretch first
        first = np.array(examples, dtype=np.int64)[:, None]
        question = np.arange(self.num_questions)
        stretch = self.num_distances - 1 - (first + question) % self.num_distances
        return stretch * self._stretch + within[np.arange(len(words))[:, None], stretch, question // self.num_distances]

    def _at_answers(self, of_question: np.ndarray, scored: np.ndarray, unscored: int) -> np.ndarray:
        """[B, sequence_length] of `unscored`, with `of_question` where a scored question's value is predicted."""
        shape = len(scored), self.num_facts + self.num_questions, SENTENCE_LENGTH
        out = np.full(shape, unscored, dtype=np.int64)
        out[:, self.num_facts :, _IS] = np.where(scored, of_question, unscored)
        return out.reshape(len(scored), self.sequence_length)


class _Ids(NamedTuple):
    """Token ids of all words; `nouns` and `values` are arrays in the order of the lists above."""

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
    """Tokens [B, n * 5] of n sentences a row, from indices [B, n] into the lists of words."""
    ids = _ids()
    tokens = np.empty((*nouns.shape, SENTENCE_LENGTH), dtype=np.int64)
    tokens[...] = ids.the, -1, ids.is_, -1, ids.stop
    tokens[..., _NOUN] = ids.nouns[nouns]
    tokens[..., _VALUE] = ids.values[values]
    return tokens.reshape(len(nouns), nouns.shape[1] * SENTENCE_LENGTH)
