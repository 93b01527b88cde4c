"""Key-value recall (GradMem, arXiv 2603.13875): pairs of random symbols are read, and the value of a key asked for."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from reverie.tasks.base import Batch, Section, Split, TaskSettings, as_batch, draw, uniform
from reverie.tasks.language import TokenNames

_PAD, _KEY, _VALUE, _FIRST = 0, 1, 2, 3  # padding, what comes before a key and before its value, the first symbol


class KeyValue(TaskSettings):
    """Task: pairs `! key : value`, padded on the left; then `num_queries` of them again, of which the value is asked.

    A key has `key_tokens` symbols and a value `value_tokens`, drawn uniformly; the keys of an example are distinct, and
    none is asked for twice. The output predicts the next token and is scored on values.

    Depth is the number of pairs of an example, a multiple of `pairs_step` up to `max_pairs`, uniform in training and in
    tests. Nothing is to be computed but the look-up, so this measures how much a memory holds.
    """

    depth_name: ClassVar[str] = "pairs"

    name: Literal["key_value"] = "key_value"
    symbols: int = Field(default=62, ge=2, le=1000)
    key_tokens: int = Field(default=2, ge=1, le=4)
    value_tokens: int = Field(default=2, ge=1, le=1000)
    max_pairs: int = Field(default=96, ge=1, le=10_000)
    pairs_step: int = Field(default=16, ge=1, le=10_000)
    num_queries: int = Field(default=16, ge=1, le=10_000)

    @model_validator(mode="after")
    def _fits(self) -> KeyValue:
        if self.max_pairs % self.pairs_step:
            raise ValueError(f"max_pairs {self.max_pairs} must be a multiple of pairs_step {self.pairs_step}")
        if self.num_queries > self.pairs_step:
            raise ValueError(
                f"num_queries {self.num_queries} must not exceed pairs_step {self.pairs_step}, the fewest pairs of an "
                "example: none is asked for twice"
            )
        if (length := self.sequence_length) > 2**20:
            raise ValueError(f"an example would have {length:,} tokens: it may have 1,048,576")
        if not self.max_pairs <= self._num_keys <= 10**5:
            raise ValueError(
                f"symbols {self.symbols} and key_tokens {self.key_tokens} give {self._num_keys} keys: they must be at "
                f"least max_pairs {self.max_pairs}, and at most 100000"
            )
        return self

    @property
    def pair_length(self) -> int:
        """Tokens of a pair, and of a query."""
        return 2 + self.key_tokens + self.value_tokens

    @property
    def vocab_size(self) -> int:
        return _FIRST + self.symbols

    def batch(self, split: Split, seed: int, step: int, examples: range, max_depth: int | None = None) -> Batch:
        """Make examples as a `Batch` [B, (max_pairs + num_queries) * pair_length]; question i is query i."""
        sizes = [1, self._num_keys, self.max_pairs * self.value_tokens, self.max_pairs]
        words = uniform(draw(split, seed, step, examples, sum(sizes)))
        of_count, of_keys, of_values, of_queries = np.split(words, np.cumsum(sizes)[:-1], axis=1)
        deepest = min(max_depth or self.max_pairs, self.max_pairs) if split == "train" else self.max_pairs
        count = self.pairs_step * (1 + (of_count * max(deepest // self.pairs_step, 1)).astype(np.int64))  # [B, 1]
        slots = np.arange(self.max_pairs)
        shown = slots >= self.max_pairs - count  # [B, max_pairs]

        pairs = np.concatenate([self._keys(of_keys), self._values(of_values)], axis=2)
        asked = np.argsort(of_queries + ~shown, axis=1)[:, : self.num_queries]
        queries = np.take_along_axis(pairs, asked[:, :, None], axis=1)
        text = _flat(np.where(shown[:, :, None], pairs, _PAD))
        blank, is_answer = np.zeros_like(text), np.arange(self.pair_length) >= 1 + self.key_tokens
        is_answer[-1] = False  # the last token of a value is the target at the one before it
        following = np.roll(queries, -1, axis=2)

        def section(values: np.ndarray, elsewhere: int) -> np.ndarray:
            return _flat(np.where(is_answer, np.broadcast_to(values, queries.shape), elsewhere))

        return as_batch(
            tokens=np.concatenate([text, _flat(queries)], axis=1),
            targets=np.concatenate([blank, section(following, 0)], axis=1),
            depth=np.concatenate([blank, section(count[:, :, None], 0)], axis=1),
            question=np.concatenate([blank - 1, section(np.arange(self.num_queries)[None, :, None], -1)], axis=1),
        )

    def depths(self) -> range:
        return range(self.pairs_step, self.max_pairs + 1, self.pairs_step)

    def chance(self) -> dict[int, float]:
        return dict.fromkeys(self.depths(), float(self.symbols) ** -self.value_tokens)

    def chance_exact(self) -> float:
        return float(self.symbols) ** (-self.value_tokens * self.num_queries)

    def token_names(self) -> list[str]:
        return [".", "!", ":", *map(str, range(self.symbols))]

    def language(self) -> TokenNames:
        names = self.token_names()
        symbols = frozenset(range(_FIRST, len(names))) if self.value_tokens == 1 else frozenset[int]()
        return TokenNames(names, longest=self.value_tokens, ends=symbols, pad_id=_PAD, question="!")

    def sections(self) -> list[Section]:
        pair = self.pair_length
        return [Section("pairs", self.max_pairs * pair), Section("queries", self.num_queries * pair)]

    @property
    def _num_keys(self) -> int:
        return self.symbols**self.key_tokens

    def _keys(self, u: np.ndarray) -> np.ndarray:
        """Distinct keys with their marks, [B, max_pairs, 1 + key_tokens + 1], from uniforms [B, keys]."""
        chosen = np.argsort(u, axis=1)[:, : self.max_pairs, None]
        symbols = chosen // self.symbols ** np.arange(self.key_tokens) % self.symbols + _FIRST
        mark = np.ones_like(chosen)
        return np.concatenate([_KEY * mark, symbols, _VALUE * mark], axis=2)

    def _values(self, u: np.ndarray) -> np.ndarray:
        """Values [B, max_pairs, value_tokens] from as many uniforms."""
        symbols = (u * self.symbols).astype(np.int64) + _FIRST
        return symbols.reshape(len(u), self.max_pairs, self.value_tokens)


def _flat(slots: np.ndarray) -> np.ndarray:
    """[B, n, m] as [B, n m]."""
    return slots.reshape(len(slots), slots.shape[1] * slots.shape[2])
