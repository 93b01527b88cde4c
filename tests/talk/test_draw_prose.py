"""Drawn prose does not go round in circles; everything else is drawn as the logits say."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from reverie.talk.draw import choose, repeated

VOCAB = 9


def drawn(logits: Tensor, length: int, *, prose: bool, temperature: float = 0.3, seed: int = 0) -> list[int]:
    said, source = list[int](), torch.Generator().manual_seed(seed)
    for _ in range(length):
        said.append(choose(logits, said, temperature, source, prose=prose))
    return said


def round_and_round(said: list[int], most: int = 12) -> int:
    """How often the end of it stands there one after the other, of passages up to so many tokens."""
    best = 1
    for n in range(1, most + 1):
        times = 1
        while said[-(times + 1) * n : -times * n] == said[-n:]:
            times += 1
        best = max(best, times)
    return best


def test_repeated_is_the_longest_match() -> None:
    """Against the definition, on texts with many repetitions."""
    source = random.Random(0)
    for _ in range(300):
        said = [source.randrange(3) for _ in range(source.randrange(30))]
        wanted = dict[int, int]()
        for i in range(1, len(said)):
            n = max(n for n in range(i + 1) if n == 0 or said[i - n : i] == said[-n:])
            if n:
                wanted[said[i]] = max(n, wanted.get(said[i], 0))
        assert repeated(said) == wanted


@pytest.mark.parametrize("seed", range(3))
def test_prose_leaves_every_circle(seed: int) -> None:
    """Of a model that is quite sure of one word, or of one sentence; that is where it would stay otherwise."""
    one_word = torch.zeros(VOCAB)
    one_word[3] = 20
    assert drawn(one_word, 40, prose=False, seed=seed) == [3] * 40
    said = drawn(one_word, 60, prose=True, seed=seed)
    assert max(round_and_round(said[:n]) for n in range(1, 61)) <= 10
    source, said = torch.Generator().manual_seed(seed), [0]
    for _ in range(80):
        logits = torch.zeros(VOCAB)
        logits[(said[-1] + 1) % VOCAB] = 20
        said.append(choose(logits, said, 0.3, source, prose=True))
    assert said[: VOCAB + 1] == [*range(VOCAB), 0]  # the first round is as it would have been
    assert max(round_and_round(said[:n]) for n in range(1, 81)) <= 3


def test_what_is_new_is_drawn_as_ever() -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
    for seed in range(20):
        first, second = (
            choose(logits, [0, 1, 2], 1.0, torch.Generator().manual_seed(seed), prose=prose) for prose in (False, True)
        )
        assert first == second


def test_the_same_seed_draws_the_same() -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
    assert drawn(logits, 30, prose=True, seed=4) == drawn(logits, 30, prose=True, seed=4)
    assert drawn(logits, 30, prose=True, seed=4) != drawn(logits, 30, prose=True, seed=5)


def test_at_temperature_0_it_is_the_likeliest() -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(2))
    assert drawn(logits, 9, prose=True, temperature=0) == [int(logits.argmax())] * 9


def test_the_longest_circle_is_no_overflow() -> None:
    assert 0 <= choose(torch.zeros(VOCAB), [1, 2] * 500, 1e-3, torch.Generator().manual_seed(0), prose=True) < VOCAB


@pytest.mark.parametrize(("top_p", "tokens"), [(5e-324, {2}), (0.5, {2}), (0.51, {2, 0}), (0.9, {2, 0, 1})])
def test_the_likeliest_that_have_the_share_are_drawn_from(top_p: float, tokens: set[int]) -> None:
    logits, source = torch.tensor([0.3, 0.15, 0.5, 0.05]).log(), torch.Generator().manual_seed(0)
    assert {choose(logits, [], 1.0, source, prose=False, top_p=top_p) for _ in range(300)} == tokens


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-6])
def test_hardly_any_temperature_is_the_likeliest(temperature: float) -> None:
    logits, source = torch.tensor([0.0, -3.0, 2.0, 1.999]), torch.Generator().manual_seed(0)
    assert {choose(logits, [], temperature, source, prose=prose) for prose in (False, True)} == {2}
