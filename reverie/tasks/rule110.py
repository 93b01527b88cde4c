"""Rule 110 (paper, section "Experiments"): run a cellular automaton in the head, t steps from a state out of sight."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from reverie.tasks.base import Batch, Section, Split, as_batch, draw

Steps = Annotated[int, Field(ge=0)]

_QUERY = 2
_FIRST_STEPS_TOKEN = 3


class Rule110(BaseModel):
    """`num_states` unrelated random rings of `width` bits, then one label each: its first bit after t steps.

    The sequence is the states' windows one after the other, then the labels: `num_states` positions whose input is
    a query token followed by the labels shifted by one, and whose target is the label. In the paper 4 × 24 + 4 tokens.

    With a range of rollout steps, t is drawn uniformly for each state and shown as the first token of its window.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["rule110"] = "rule110"
    num_states: int = Field(default=4, ge=1)
    width: int = Field(default=24, ge=3, le=48, description="bits of a state")
    rollout_steps: Steps | tuple[Steps, Steps] = Field(description="t, or its inclusive range")
    held_out_fraction: float = Field(
        default=0.0, ge=0, lt=1, description="share of all states that training never and testing only shows"
    )

    @model_validator(mode="after")
    def _fits(self) -> Rule110:
        low, high = self._steps_range
        if low > high:
            raise ValueError(f"rollout_steps is the range {low}..{high}, its first number must not exceed its second")
        if self.held_out_fraction and not 1 <= self._num_held_out < 2**self.width:
            raise ValueError(
                f"held_out_fraction {self.held_out_fraction} of {2**self.width} states is {self._num_held_out} states; "
                f"both splits need at least one"
            )
        return self

    @property
    def context_window(self) -> int:
        """Tokens of one state's window: the model must sleep that often."""
        return self.width + self._shows_steps

    @property
    def vocab_size(self) -> int:
        low, high = self._steps_range
        return _FIRST_STEPS_TOKEN + (high - low + 1 if self._shows_steps else 0)

    @property
    def sequence_length(self) -> int:
        return self.num_states * (self.context_window + 1)

    @property
    def answer_is_last(self) -> bool:
        return False

    def batch(self, split: Split, seed: int, step: int, examples: range, max_depth: int | None = None) -> Batch:
        """Examples as a `Batch` [B, num_states * (context_window + 1)]; question i asks for state i.

        In training, `max_depth` cuts a range of t off behind it.
        """
        words = draw(split, seed, step, examples, 2 * self.num_states)
        states = self._states(split, words[:, : self.num_states])  # [B, num_states]
        low, high = self._steps_range
        if split == "train" and max_depth is not None:
            high = min(max(max_depth, low), high)
        steps = low + (words[:, self.num_states :] % np.uint64(high - low + 1)).astype(np.int64)
        labels = (evolve(states, steps, self.width) & np.uint64(1)).astype(np.int64)

        bits = (states[..., None] >> np.arange(self.width, dtype=np.uint64)) & np.uint64(1)
        windows = bits.astype(np.int64)  # [B, num_states, width]
        if self._shows_steps:
            windows = np.concatenate([_FIRST_STEPS_TOKEN + (steps - low)[..., None], windows], axis=-1)
        context = windows.reshape(len(labels), self.num_states * self.context_window)
        query = np.full_like(labels[:, :1], _QUERY)
        blank = np.zeros_like(context)
        return as_batch(
            tokens=np.concatenate([context, query, labels[:, :-1]], axis=1),
            targets=np.concatenate([blank, labels], axis=1),
            depth=np.concatenate([blank, steps], axis=1),
            question=np.concatenate([blank - 1, np.arange(self.num_states) + np.zeros_like(labels)], axis=1),
        )

    def depths(self) -> range:
        low, high = self._steps_range
        return range(low, high + 1)

    def chance(self) -> dict[int, float]:
        """By t: how often the commoner value of the label is right."""
        low, high = self._steps_range
        return {t: max(share := self._ones_in_tests(t), 1 - share) for t in range(low, high + 1)}

    def _ones_in_tests(self, steps: int) -> float:
        """Share of labels that are 1; among few held-out states it may differ from that among all."""
        if not 0 < self._num_held_out <= 2**18:
            return ones_share(self.width, steps)
        states = _scramble(np.arange(self._num_held_out, dtype=np.uint64), self.width)
        return float((evolve(states, np.full(states.shape, steps), self.width) & np.uint64(1)).mean())

    def chance_exact(self) -> float:
        """All labels right: the states are independent, and so are their t."""
        by_steps = self.chance().values()
        return (sum(by_steps) / len(by_steps)) ** self.num_states

    def token_names(self) -> list[str]:
        low, high = self._steps_range
        return ["0", "1", "?", *(f"t={t}" for t in range(low, high + 1) if self._shows_steps)]

    def sections(self) -> list[Section]:
        states = [Section(f"state {i}", self.context_window) for i in range(self.num_states)]
        return [*states, Section("labels", self.num_states)]

    @property
    def _shows_steps(self) -> bool:
        return isinstance(self.rollout_steps, tuple)

    @property
    def _steps_range(self) -> tuple[int, int]:
        t = self.rollout_steps
        return t if isinstance(t, tuple) else (t, t)

    @property
    def _num_held_out(self) -> int:
        return round(self.held_out_fraction * 2**self.width)

    def _states(self, split: Split, words: np.ndarray) -> np.ndarray:
        """Random words to allowed states, uint64 of the same shape: uniform, exact and without rejection.

        States are numbered by a fixed scrambling of 0..2^width-1, and the first `_num_held_out` numbers are held out.
        """
        low, high = 0, 2**self.width
        if self._num_held_out:
            low, high = (self._num_held_out, high) if split == "train" else (0, self._num_held_out)
        return _scramble(np.uint64(low) + words % np.uint64(high - low), self.width)


def evolve(states: np.ndarray, steps: np.ndarray, width: int) -> np.ndarray:
    """`steps` [...] steps of Rule 110 on rings `states` [...], uint64 whose bit i is cell i; a state has its own t."""
    ones, last = np.uint64(2**width - 1), np.uint64(width - 1)
    one = np.uint64(1)
    now, result = states, states.copy()
    for t in range(1, int(steps.max(initial=0)) + 1):
        left = ((now << one) | (now >> last)) & ones  # bit i holds cell i-1
        right = ((now >> one) | (now << last)) & ones  # bit i holds cell i+1
        now = (now | right) & ~(left & now & right)  # 110 = 0b01101110: alive if self or right is, unless all three are
        result = np.where(steps == t, now, result)
    return result


@lru_cache(maxsize=1024)
def ones_share(width: int, steps: int) -> float:
    """P(first bit is 1) after `steps` steps from a uniformly random ring.

    Exact up to 18 bits that matter, else from 2^17 random states and all their bits (error about 1e-3 or less).
    """
    seen = min(width, 2 * steps + 1)  # the cells a label depends on; a ring of just these gives the same label
    ring = max(seen, 3)
    if ring <= 18:
        states = np.arange(2**ring, dtype=np.uint64)
    else:
        ring = width
        states = np.random.Generator(np.random.Philox(110)).integers(2**ring, size=2**17, dtype=np.uint64)
    ends = evolve(states, np.full(states.shape, steps), ring)
    return float(np.bitwise_count(ends).mean() / ring)  # all cells of a random ring are alike


def _scramble(numbers: np.ndarray, width: int) -> np.ndarray:
    """A fixed bijection of 0..2^width-1, uint64: odd multipliers and right xor-shifts both are bijections there."""
    ones, half = np.uint64(2**width - 1), np.uint64((width + 1) // 2)
    mixed = numbers
    for factor in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        mixed = (mixed * np.uint64(factor)) & ones
        mixed = mixed ^ (mixed >> half)
    return mixed
