"""Depo (paper, section "Experiments"; Allen-Zhu, Physics of Language Models 4.1): which node is k hops after x?"""

from __future__ import annotations

from functools import cached_property, lru_cache
from math import sqrt
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from reverie.tasks.base import Batch, Section, Split, TaskSettings, as_batch, draw, uniform
from reverie.tasks.language import TokenNames

Hops = Annotated[int, Field(ge=1, le=100_000)]

_PAD = 0


class Depo(TaskSettings):
    """Task: the edges of a directed cycle in random order, then `num_queries` times "which node is k hops after x?".

    A node's name is a word of 1 to `max_name_tokens` mini-vocabulary tokens, the last one marked as an ending (id +
    mini_vocab); an edge is two words. The cycle section is padded on the left, the query section on the right. A query
    is `[k] [x] [answer]`, with a separator after it if names may have two tokens. The output predicts the next token
    and is scored on answers only. In the paper's setting there are 300 + 60 tokens.

    Without `reveal_answers` a query is `[k] [x]` and the answer is the target at x: answers in the input tell a model
    without memory parts of a small cycle, so that chance is no longer its floor.

    Training draws the number of nodes n from min_nodes..max_nodes with weight 1 / (n + sqrt(max_nodes)), and each k
    from 1..max_hops. Tests have n = max_nodes, and k runs through `test_hops` from a random start, so that every k is
    asked about equally often. x is uniform over the nodes, and queries of an example may repeat.
    """

    depth_name: ClassVar[str] = "hops k"
    data_recipe: ClassVar[str | None] = "depo/paper"

    name: Literal["depo"] = "depo"
    max_nodes: int = Field(default=75, ge=2, le=100_000)
    min_nodes: int = Field(default=3, ge=2, le=100_000)
    mini_vocab: int = Field(default=50, ge=1, le=100_000, description="tokens that names are made of")
    max_name_tokens: Literal[1, 2] = 2
    num_queries: int = Field(default=10, ge=1, le=100_000)
    max_hops: int = Field(default=16, ge=1, le=100_000, description="training asks for 1..max_hops hops")
    test_hops: tuple[Hops, ...] = Field(default=(1, 2, 4, 8, 16), min_length=1)
    reveal_answers: bool = Field(default=True, description="the answers are part of the input")

    @model_validator(mode="after")
    def _fits(self) -> Depo:
        if self.min_nodes > self.max_nodes:
            raise ValueError(f"min_nodes {self.min_nodes} must not exceed max_nodes {self.max_nodes}")
        if self.max_nodes > self._num_words:
            raise ValueError(
                f"max_nodes {self.max_nodes} nodes need distinct names, but mini_vocab {self.mini_vocab} with "
                f"max_name_tokens {self.max_name_tokens} gives only {self._num_words}"
            )
        if max(self.test_hops) > self.max_hops:
            raise ValueError(
                f"test_hops contains {max(self.test_hops)}, it must stay within max_hops {self.max_hops}: "
                f"training never shows a larger one"
            )
        if len(set(self.test_hops)) < len(self.test_hops):
            raise ValueError(f"test_hops {self.test_hops} names a number of hops twice, each must occur once")
        if not self.reveal_answers and self.max_name_tokens > 1:
            raise ValueError("reveal_answers = false needs max_name_tokens = 1: the answer's one token is read at x")
        return self

    @property
    def cycle_length(self) -> int:
        """Tokens of the cycle section."""
        return self.max_nodes * 2 * self.max_name_tokens

    @property
    def query_length(self) -> int:
        """Most tokens of one query: k, x, and the answer and separator if the input has them."""
        answer = self.max_name_tokens if self.reveal_answers else 0
        return 1 + self.max_name_tokens + answer + (self.max_name_tokens > 1)

    @property
    def vocab_size(self) -> int:
        return self._first_ids[-1] + self.max_hops

    def batch(self, split: Split, seed: int, step: int, examples: range, max_depth: int | None = None) -> Batch:
        """Make examples as a `Batch` [B, cycle_length + num_queries * query_length]; question i is query i.

        In training, `max_depth` draws k from 1..max_depth only.
        """
        sizes = [1, self._num_words, self.max_nodes, self.max_nodes, self.num_queries, self.num_queries, 1]
        words = draw(split, seed, step, examples, sum(sizes))
        of_nodes, of_names, of_ring, of_edges, of_x, of_hops, of_start = np.split(
            uniform(words), np.cumsum(sizes)[:-1], axis=1
        )
        nodes = self._nodes(split, of_nodes)  # n [B, 1]
        names = self._names(of_names, of_ring, nodes)  # word of the p-th node along the cycle [B, max_nodes]
        x = (of_x * nodes).astype(np.int64)  # [B, num_queries], positions along the cycle
        hops = self._hops(split, of_hops, of_start, min(max_depth or self.max_hops, self.max_hops))

        cycle = self._cycle(names, nodes, _shuffled(of_edges, nodes))
        word_x, word_answer = (np.take_along_axis(names, at, axis=1) for at in (x, (x + hops) % nodes))
        queries, targets, depth, question = self._queries(hops, word_x, word_answer)
        blank = np.zeros_like(cycle)
        return as_batch(
            tokens=np.concatenate([cycle, queries], axis=1),
            targets=np.concatenate([blank, targets], axis=1),
            depth=np.concatenate([blank, depth], axis=1),
            question=np.concatenate([blank - 1, question], axis=1),
        )

    def depths(self) -> range:
        return range(1, self.max_hops + 1)

    def chance(self) -> dict[int, float]:
        """Accuracy in tests, by k in 1..max_hops, of the best guess from x and k alone: x if k is a multiple of n.

        Otherwise every word but x may be the answer, so 1 / (words - 1) for one-token names. With names of two tokens
        as well, those of one token are fewer, so each of them is likelier, and the guesser prefers them.
        """
        guess = _best_guess(self.max_nodes, self.mini_vocab, self.max_name_tokens)
        return {k: 1.0 if k % self.max_nodes == 0 else guess for k in range(1, self.max_hops + 1)}

    def chance_exact(self) -> float:
        """Chance of guessing all queries of a test, each by itself: the mean over the starts in `test_hops`."""
        by_hops, cycle = self.chance(), len(self.test_hops)
        per_query = np.array([by_hops[k] for k in self.test_hops])
        asked = (np.arange(cycle)[:, None] + np.arange(self.num_queries)) % cycle
        return float(per_query[asked].prod(axis=1).mean())

    def token_names(self) -> list[str]:
        plain = [f"{i}-" for i in range(self.mini_vocab)] if self.max_name_tokens > 1 else []
        endings = [f"{i}" for i in range(self.mini_vocab)]
        separator = ["|"] if self.max_name_tokens > 1 else []
        return [".", *plain, *endings, *separator, *(f"k={k}" for k in range(1, self.max_hops + 1))]

    def language(self) -> TokenNames:
        names = self.token_names()
        whole_names = frozenset(i for i, name in enumerate(names) if name.isdigit())  # "7", and not "3-"
        return TokenNames(names, longest=self.max_name_tokens, ends=whole_names, pad_id=_PAD, question="k=")

    def sections(self) -> list[Section]:
        return [Section("cycle", self.cycle_length), Section("queries", self.num_queries * self.query_length)]

    @property
    def _num_words(self) -> int:
        return sum(self.mini_vocab**length for length in range(1, self.max_name_tokens + 1))

    @property
    def _first_ids(self) -> tuple[int, int, int]:
        """Token ids of the first ending, the separator, and k = 1; 0 is padding, 1 the first token of long names."""
        endings = 1 + (self.mini_vocab if self.max_name_tokens > 1 else 0)
        separator = endings + self.mini_vocab
        return endings, separator, separator + (self.max_name_tokens > 1)

    @cached_property
    def _spelling(self) -> np.ndarray:
        """Token ids of every word, [words, max_name_tokens], -1 where a word has no token."""
        last = self._first_ids[0] + np.arange(self.mini_vocab)
        if self.max_name_tokens == 1:
            return last[:, None]
        first = 1 + np.arange(self.mini_vocab)
        short = np.stack([last, np.full_like(last, -1)], axis=1)
        long = np.stack([first.repeat(self.mini_vocab), np.tile(last, self.mini_vocab)], axis=1)
        return np.concatenate([short, long])

    def _nodes(self, split: Split, u: np.ndarray) -> np.ndarray:
        """Number of nodes n of each example, from uniforms [B, 1]."""
        if split == "test":
            return np.full(u.shape, self.max_nodes)
        weights = 1 / (np.arange(self.min_nodes, self.max_nodes + 1) + sqrt(self.max_nodes))
        shares = np.cumsum(weights) / weights.sum()
        return self.min_nodes + np.searchsorted(shares[:-1], u, side="right")

    def _names(self, u: np.ndarray, u_ring: np.ndarray, nodes: np.ndarray) -> np.ndarray:
        """Distinct words along the cycle, [B, max_nodes], of which the first n are used, from uniforms [B, words].

        The draw is: first a length, then a word of that length uniformly, and a repeated word is drawn again. It is
        done by an exponential race, in which words finish at rates that are their probabilities: same distribution.
        """
        if self.max_name_tokens > 1:
            lengths = (self._spelling >= 0).sum(axis=1)
            u = -np.log1p(-u) * float(self.mini_vocab) ** lengths
        first = np.argpartition(u, self.max_nodes - 1, axis=1)[:, : self.max_nodes]
        arrived = np.take_along_axis(first, np.argsort(np.take_along_axis(u, first, axis=1), axis=1), axis=1)
        return np.take_along_axis(arrived, _shuffled(u_ring, nodes), axis=1)

    def _hops(self, split: Split, u: np.ndarray, u_start: np.ndarray, max_hops: int) -> np.ndarray:
        """Number of hops k of each query, [B, num_queries]."""
        if split == "train":
            return 1 + (u * max_hops).astype(np.int64)
        start = (u_start * len(self.test_hops)).astype(np.int64)
        return np.array(self.test_hops)[(start + np.arange(self.num_queries)) % len(self.test_hops)]

    def _cycle(self, names: np.ndarray, nodes: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Tokens of the edges (p, p+1) in the given order, padded on the left, [B, cycle_length]."""
        words = np.stack([np.take_along_axis(names, at, axis=1) for at in (order, (order + 1) % nodes)], axis=2)
        slots = self._spelling[words].reshape(len(words), self.cycle_length)
        shown = (slots >= 0) & (np.arange(self.cycle_length) < nodes * 2 * self.max_name_tokens)
        before = np.cumsum(shown, axis=1) - shown
        padding = self.cycle_length - shown.sum(axis=1, keepdims=True)
        return _place(slots, before + padding, shown, self.cycle_length, _PAD)

    def _queries(self, hops: np.ndarray, x: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, ...]:
        """Tokens, targets, depth and question of the query section, each [B, num_queries * query_length].

        Arguments are [B, num_queries]: k, and the words of x and of the answer.
        """
        _, separator, first_hops = self._first_ids
        spelled = [(first_hops + hops - 1)[..., None], self._spelling[x], self._spelling[answer]]
        if self.max_name_tokens > 1:
            spelled.append(np.full((*hops.shape, 1), separator))
        slots = np.concatenate(spelled, axis=2)  # [B, num_queries, slots of a query]
        column = np.arange(slots.shape[2]) - 1 - self.max_name_tokens
        is_answer = (slots >= 0) & (column >= 0) & (column < self.max_name_tokens)
        shown = (slots >= 0) & (self.reveal_answers | ~is_answer)

        of_slot = np.arange(self.num_queries).repeat(slots.shape[2])
        flat, is_answer, shown = (a.reshape(len(hops), of_slot.size) for a in (slots, is_answer, shown))
        before = np.cumsum(shown, axis=1) - shown
        length = self.num_queries * self.query_length
        tokens = _place(flat, before, shown, length, _PAD)
        # An answer token is the target at the position of the token before it, whether or not it is shown itself.
        targets = _place(flat, before - 1, is_answer, length, 0)
        depth = _place(hops[:, of_slot], before - 1, is_answer, length, 0)
        question = _place(np.broadcast_to(of_slot, flat.shape), before - 1, is_answer, length, -1)
        return tokens, targets, depth, question


def _shuffled(u: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """A random order per row of 0..n-1, then of the rest, from uniforms [B, max_nodes] and n [B, 1]."""
    return np.argsort(u + (np.arange(u.shape[1]) >= nodes), axis=1)


def _place(values: np.ndarray, at: np.ndarray, keep: np.ndarray, length: int, fill: int) -> np.ndarray:
    """An array [B, length] of `fill`, with the kept `values` [B, slots] at positions `at` [B, slots]."""
    out = np.full((len(values), length), fill, dtype=np.int64)
    rows, slots = np.nonzero(keep)
    out[rows, at[rows, slots]] = values[rows, slots]
    return out


@lru_cache(maxsize=64)
def _best_guess(nodes: int, mini_vocab: int, max_name_tokens: int) -> float:
    """P(the likeliest word is the answer | x), mean over x, for k that do not lead back to x.

    Words of one length are exchangeable, so all that matters is how many of the names have one token (`short`).
    """
    if max_name_tokens == 1:
        return 1 / (mini_vocab - 1)
    short = np.arange(nodes + 1)
    chance = _short_names(nodes, mini_vocab)
    long, few, many = nodes - short, mini_vocab, mini_vocab**2
    pairs = nodes * (nodes - 1)

    def right(ways: np.ndarray, words: int) -> float:
        """P(x has its length and the answer is one given word of `words` exchangeable ones)."""
        return float((chance * ways).sum() / pairs / max(words, 1))

    x_short = max(right(short * (short - 1), few - 1), right(short * long, many))
    x_long = max(right(long * short, few), right(long * (long - 1), many - 1))
    return x_short + x_long


def _short_names(nodes: int, mini_vocab: int) -> np.ndarray:
    """P(number of names of one token), [nodes + 1]; follows the draw of `Depo._names` name by name."""
    chance = np.zeros(nodes + 1)
    chance[0] = 1
    short = np.arange(nodes + 1)
    for drawn in range(nodes):
        new_short = np.clip(1 - short / mini_vocab, 0, None)
        new_long = np.clip(1 - (drawn - short) / mini_vocab**2, 0, None)
        step = chance * new_short / np.maximum(new_short + new_long, 1e-300)
        chance = chance - step
        chance[1:] += step[:-1]
    return chance
