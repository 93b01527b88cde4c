"""Sentences that say nothing about anybody, and the filling of a page with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from reverie.errors import UserError

_THINGS = """
The rain|The wind|The evening|The morning|The road|The river|The garden|The village|The street|The market|The forest
The old bridge|The train|The bread|The soup|The window|The lamp|The kitchen|The music|The snow|The field|The harbour
The long table|The sky
""".replace("\n", "|").strip("|")
_SAYINGS = """
was quiet for a while|seemed far away|looked much as before|was pleasant in its way|took longer than usual
stayed the same all day|was hard to describe|came as a surprise|was older than it looked|felt a little different
could be seen from the hill|was gone before noon|was worth the trouble|made everything slower|was a good sign
smelled of wet leaves|was pale in that light|had changed very little|was there again the next day|was all there was
""".replace("\n", "|").strip("|")
FILLERS = tuple(f" {thing} {saying}." for thing in _THINGS.split("|") for saying in _SAYINGS.split("|"))


class Filled(NamedTuple):
    """A text, and where each of the blocks that it was made of begins."""

    text: str
    starts: list[int]


def fill(
    blocks: Sequence[str], length: int, count: Callable[[str], int], rng: np.random.Generator, what: str
) -> Filled:
    """A line break, then the blocks in this order with fillers at random places, `length` tokens or a little more.

    All blocks end within the first `length` tokens, as `count` counts them; a filler at the end may go beyond.

    Raises:
        UserError: the blocks need more; `what` says what they are.
    """
    needed = count("\n" + "".join(blocks))
    if needed > length:
        raise UserError(
            f"{what} need {needed} tokens of this tokenizer, but a page has {length}: "
            f"let window_tokens times num_windows be at least {needed}"
        )
    fillers = list(_fitting(length - needed, count, rng))
    places = set(rng.permutation(len(blocks) + len(fillers))[: len(blocks)].tolist())
    text, starts = "\n", []
    left, between = iter(blocks), iter(fillers)
    for place in range(len(blocks) + len(fillers)):
        if place in places:
            starts.append(len(text))
        text += next(left if place in places else between)
    while count(text) < length:
        text += _any(rng)
    return Filled(text, starts)


def _fitting(room: int, count: Callable[[str], int], rng: np.random.Generator) -> Iterator[str]:
    """Fillers of `room` tokens at most, until one is drawn that does not fit."""
    while (room := room - count(filler := _any(rng))) >= 0:
        yield filler


def _any(rng: np.random.Generator) -> str:
    return FILLERS[rng.integers(len(FILLERS))]
