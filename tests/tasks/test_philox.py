"""Random words made by torch against numpy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reverie.tasks import Split
from reverie.tasks.base import draw
from reverie.tasks.philox import draw_on, indices, unsigned_remainder

CPU = torch.device("cpu")
EDGES = [0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]  # where halves and signs change


def words_of(split: Split, seed: int, steps: range, examples: range, words: int) -> np.ndarray:
    return draw_on(CPU, split, seed, steps, examples, words).numpy().view(np.uint64)


@settings(max_examples=60, deadline=None)
@given(
    split=st.sampled_from(["train", "test"]),
    seed=st.integers(0, 2**64 - 1) | st.sampled_from(EDGES),
    first_step=st.integers(0, 2**62 - 20) | st.integers(0, 1000),
    steps=st.integers(1, 4),
    every_step=st.integers(1, 3),
    first=st.integers(0, 2**58) | st.integers(0, 1000),
    examples=st.integers(1, 5),
    every_example=st.sampled_from([1, 3, -1, -2]),
    words=st.integers(1, 13),
)
def test_the_bits_are_those_of_numpy(
    split: Split,
    seed: int,
    first_step: int,
    steps: int,
    every_step: int,
    first: int,
    examples: int,
    every_example: int,
    words: int,
) -> None:
    of_steps = range(first_step, first_step + steps * every_step, every_step)
    start = first + (0 if every_example > 0 else (examples - 1) * -every_example)
    of_examples = range(start, start + examples * every_example, every_example)
    expected = np.stack([draw(split, seed, step, of_examples, words) for step in of_steps])
    found = words_of(split, seed, of_steps, of_examples, words)
    assert found.shape == (steps, examples, words)
    assert np.array_equal(found, expected)


def test_nothing_asked_for() -> None:
    assert words_of("train", 3, range(4), range(7, 7), 5).shape == (4, 0, 5)
    assert words_of("train", 3, range(2, 2), range(7), 5).shape == (0, 7, 5)


@pytest.mark.parametrize(
    ("seed", "steps", "examples", "message"),
    [
        (-1, range(2), range(2), "seed is -1"),
        (2**64, range(2), range(2), "seed is"),
        (0, range(-1, 2), range(2), "step is -1"),
        (0, range(2**62 - 1, 2**62 + 1), range(2), "step is"),
        (0, range(2), range(-2, 2), "examples starts at -2"),
        (0, range(2), range(2**62, 2**62 + 2), "must be below"),
    ],
)
def test_what_draw_refuses(seed: int, steps: range, examples: range, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_on(CPU, "train", seed, steps, examples, 8)


@given(
    words=st.lists(st.integers(0, 2**64 - 1) | st.sampled_from(EDGES), min_size=1, max_size=8),
    divisor=st.integers(1, 2**62) | st.integers(1, 50) | st.sampled_from([2**32, 2**48, 2**62]),
)
def test_the_remainder_is_that_of_unsigned_words(words: list[int], divisor: int) -> None:
    bits = torch.from_numpy(np.array(words, dtype=np.uint64).view(np.int64))
    expected = [word % divisor for word in words]
    assert unsigned_remainder(bits, divisor).tolist() == expected
    assert unsigned_remainder(bits, torch.tensor([divisor])).tolist() == expected


@pytest.mark.parametrize("numbers", [range(5), range(3, 20, 4), range(9, 2, -3), range(4, 1)])
def test_indices(numbers: range) -> None:
    assert indices(numbers, CPU).tolist() == list(numbers)
