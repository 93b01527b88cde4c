"""Rule 110 (paper, section "Experiments"): simulate a cellular automaton for t steps from a state that was evicted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field, model_validator
from torch import Tensor

from reverie.tasks.base import Batch, Section, Split, TaskSettings, draw
from reverie.tasks.language import TokenNames
from reverie.tasks.philox import draw_on, unsigned_remainder

Steps = Annotated[int, Field(ge=0, le=100_000)]

_QUERY = 2
_FIRST_STEPS_TOKEN = 3
_SCRAMBLERS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


class Rule110(TaskSettings):
    """Task: `num_states` independent random rings of `width` bits, then one label each: its first bit after t steps.

    The sequence is the states' windows one after the other, then the labels: `num_states` positions whose input is
    a query token followed by the labels shifted by one, and whose target is the label. In the paper 4 × 24 + 4 tokens.

    With a range of rollout steps, t is drawn uniformly for each state and shown as the first token of its window. If
    `ladder` is set as well, all states have the deepest t that the curriculum has reached, and t is not shown.
    """

    depth_name: ClassVar[str] = "rollout steps t"
    data_recipe: ClassVar[str | None] = "rule110/paper-depth"

    name: Literal["rule110"] = "rule110"
    num_states: int = Field(default=4, ge=1, le=100_000)
    width: int = Field(default=24, ge=3, le=48, description="bits of a state")
    rollout_steps: Steps | tuple[Steps, Steps] = Field(description="t, or its inclusive range")
    ladder: bool = Field(
        default=False,
        description="train with the deepest t of the curriculum so far alone, test with the last; t is not shown",
    )
    held_out_fraction: float = Field(
        default=0.0, ge=0, lt=1, description="share of all states that only tests show, and training never does"
    )

    @model_validator(mode="after")
    def _fits(self) -> Rule110:
        low, high = self._steps_range
        if low > high:
            raise ValueError(f"rollout_steps is the range {low}..{high}, its first number must not exceed its second")
        if self.ladder and low == high:
            raise ValueError(f"ladder climbs a range of rollout_steps, like [1, {max(high, 2)}], got {high} alone")
        if self.held_out_fraction and not 1 <= self._num_held_out < 2**self.width:
            raise ValueError(
                f"held_out_fraction {self.held_out_fraction} of {2**self.width} states is {self._num_held_out} states; "
                f"both splits need at least one"
            )
        return self

    @property
    def context_window(self) -> int:
        """Tokens of one state's window: `window_size` in the paper's setting."""
        return self.width + self._shows_steps

    @property
    def vocab_size(self) -> int:
        low, high = self._steps_range
        return _FIRST_STEPS_TOKEN + (high - low + 1 if self._shows_steps else 0)

    def batch(self, split: Split, seed: int, step: int, examples: range, max_depth: int | None = None) -> Batch:
        """Make examples as a `Batch` [B, num_states * (context_window + 1)]; question i asks for state i.

        In training, `max_depth` ends the range of t; tests of a ladder have its last t.
        """
        words = torch.from_numpy(draw(split, seed, step, examples, 2 * self.num_states).view(np.int64))
        batch = self._made(words[None], split, [max_depth if split == "train" else None])
        return Batch(*(field[0] for field in batch))

    def batches_on(
        self, device: torch.device, seed: int, steps: range, examples: range, max_depths: Sequence[int | None]
    ) -> Batch:
        """Make several steps' batches, as `DeviceTask` says: fields [steps, B, num_states * (context_window + 1)]."""
        if len(max_depths) != len(steps):
            raise ValueError(f"max_depths has {len(max_depths)} entries for {len(steps)} steps, it must have one each")
        words = draw_on(device, "train", seed, steps, examples, 2 * self.num_states)
        return self._made(words, "train", max_depths)

    def _made(self, words: Int[Tensor, "steps B words"], split: Split, max_depths: Sequence[int | None]) -> Batch:
        """Batches of several steps from random words, read as uint64: one for each state, then one for each t."""
        device, choices = words.device, [self._choices(limit) for limit in max_depths]
        first, end = self._numbers(split)
        numbers = first + unsigned_remainder(words[..., : self.num_states], end - first)
        states = _scramble(numbers, self.width)  # [steps, B, num_states]
        low, high = self._steps_range
        t = torch.full_like(states, low)
        if self.ladder:
            t += _filled(choices, device) - 1
        elif high > low:
            t += unsigned_remainder(words[..., self.num_states :], _filled(choices, device))
        labels = evolve(states, t, range(low, low + max(choices, default=1)), self.width) & 1

        shown = [(_FIRST_STEPS_TOKEN + t - low)[..., None]] if self._shows_steps else []
        bits = (states[..., None] >> torch.arange(self.width, device=device)) & 1
        context = torch.cat([*shown, bits], dim=-1).flatten(-2)
        query, blank = torch.full_like(labels[..., :1], _QUERY), torch.zeros_like(context)
        question = torch.cat([blank - 1, torch.arange(self.num_states, device=device).expand_as(labels)], dim=-1)
        return Batch(
            tokens=torch.cat([context, query, labels[..., :-1]], dim=-1),
            targets=torch.cat([blank, labels], dim=-1),
            loss_mask=question >= 0,
            depth=torch.cat([blank, t], dim=-1),
            question=question,
        )

    def depths(self) -> range:
        low, high = self._steps_range
        return range(low, high + 1)

    def chance(self) -> dict[int, float]:
        """Share of labels, by t, that have their more frequent value."""
        tested = self.depths()[-1:] if self.ladder else self.depths()
        return {t: max(share := self._ones_in_tests(t), 1 - share) for t in tested}

    def _ones_in_tests(self, steps: int) -> float:
        """Share of labels in tests that are 1; for few held-out states it may differ from that of all states."""
        if not 0 < self._num_held_out <= 2**18:
            return ones_share(self.width, steps)
        states = _scramble(torch.arange(self._num_held_out), self.width)
        labels = evolve(states, torch.tensor(steps), range(steps, steps + 1), self.width) & 1
        return labels.double().mean().item()

    def chance_exact(self) -> float:
        """Chance of guessing all labels: states are independent, and so are their t."""
        by_steps = self.chance().values()
        return (sum(by_steps) / len(by_steps)) ** self.num_states

    def token_names(self) -> list[str]:
        low, high = self._steps_range
        return ["0", "1", "?", *(f"t={t}" for t in range(low, high + 1) if self._shows_steps)]

    def language(self) -> TokenNames:
        return TokenNames(self.token_names(), longest=self.num_states)

    def sections(self) -> list[Section]:
        states = [Section(f"state {i}", self.context_window) for i in range(self.num_states)]
        return [*states, Section("labels", self.num_states)]

    @property
    def _shows_steps(self) -> bool:
        return isinstance(self.rollout_steps, tuple) and not self.ladder

    @property
    def _steps_range(self) -> tuple[int, int]:
        t = self.rollout_steps
        return t if isinstance(t, tuple) else (t, t)

    @property
    def _num_held_out(self) -> int:
        return round(self.held_out_fraction * 2**self.width)

    def _choices(self, max_depth: int | None) -> int:
        """Number of values of t up to a limit, at least 1."""
        low, high = self._steps_range
        return (high if max_depth is None else min(max(max_depth, low), high)) - low + 1

    def _numbers(self, split: Split) -> tuple[int, int]:
        """Range (first, end) of the numbers of the states that a split shows."""
        held_out, every = self._num_held_out, 2**self.width
        if not held_out:
            return 0, every
        return (held_out, every) if split == "train" else (0, held_out)


def _filled(values: Sequence[int], device: torch.device) -> Int[Tensor, "steps 1 1"]:
    """Numbers as a tensor. Runs of equal ones, of which a curriculum has few, are filled on the device."""
    parts = [torch.full((sum(1 for _ in run), 1, 1), value, device=device) for value, run in groupby(values)]
    return torch.cat(parts) if parts else torch.ones(0, 1, 1, dtype=torch.int64, device=device)


def evolve(states: Tensor, steps: Tensor, depths: range, width: int) -> Tensor:
    """Run each of `states` [...] int64 for its `steps` of Rule 110; bit i of a state is cell i of a ring.

    `depths` holds all steps: reading them would wait for the device.
    """
    now = result = states
    for t in range(1, depths.stop):
        now = _next(now, width)
        if t in depths:
            result = now if len(depths) == 1 else torch.where(steps == t, now, result)
    return result


def _next(now: Tensor, width: int) -> Tensor:
    """One step of Rule 110 = 0b01101110: a cell is alive if it or its right neighbour is, unless all three are."""
    last = width - 1
    left = (now << 1) | (now >> last)  # bit i holds cell i-1; the bit beyond the ring meets no bit of `now`
    right = (now >> 1) | ((now & 1) << last)  # bit i holds cell i+1
    return (now | right) ^ (left & now & right)


@lru_cache(maxsize=1024)
def ones_share(width: int, steps: int) -> float:
    """P(first bit is 1) after `steps` steps from a uniformly random ring.

    Exact if the label depends on up to 18 bits, else estimated from all bits of 2^17 random states (error below 1e-3).
    """
    seen = min(width, 2 * steps + 1)  # cells that a label depends on; a ring of these alone has the same label
    ring = max(seen, 3)
    if ring <= 18:
        states = torch.arange(2**ring)
    else:
        ring = width
        states = torch.from_numpy(np.random.Generator(np.random.Philox(110)).integers(2**ring, size=2**17))
    ends = evolve(states, torch.tensor(steps), range(steps, steps + 1), ring)
    return float(np.bitwise_count(ends.numpy()).mean() / ring)  # cells of a random ring are identically distributed


def _scramble(numbers: Tensor, width: int) -> Tensor:
    """A fixed permutation of 0..2^width-1, int64: odd factors and right xor-shifts are bijections."""
    ones, half = 2**width - 1, (width + 1) // 2
    mixed = numbers
    for factor in _SCRAMBLERS:
        mixed = (mixed * (factor & ones)) & ones  # higher bits of a factor do not reach the bits that are kept
        mixed = mixed ^ (mixed >> half)
    return mixed
