"""`WordTokenizer`, a small closed vocabulary for models trained from scratch.

Names and fixed phrases are one token each and numbers are digits, so a fact takes about ten tokens instead of thirty.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

from reverie.tasks.gsm_infinite.worlds import WORLDS, World

PAD, END = "[pad]", "[end]"

_GRAMMAR = (
    *("Problem:", "Question:", "Answer:"),
    *(f"{the} {what}number of" for what in ("", "average ", "total ") for the in ("The", "the")),
    *("per", "in", "equals", "plus", "times", "the sum of", "the difference between", "and"),
    *("exists, and its number is greater than 0", "is greater than 0"),
    *("How many", "does", "have?", "What is", "?", ",", "."),
)
_NO_SPACE_BEFORE = {"?", ",", "."}


class WordTokenizer:
    """Tokenizer of problems about some worlds; id 0 is padding, 1 the end of an answer."""

    def __init__(self, worlds: Iterable[str]) -> None:
        terms = [PAD, END, *"0123456789", *_GRAMMAR]
        for world in worlds:
            terms += _names(WORLDS[world])
        self._terms = list(dict.fromkeys(terms))
        self._ids = {term: i for i, term in enumerate(self._terms)}
        self.special_ids = {PAD: 0, END: 1}
        # The longest term that does not end inside a word, with the spaces after it.
        longest_first = sorted(self._terms[2:], key=len, reverse=True)
        terms = (re.escape(term) + (r"\b" if term[-1].isalpha() else "") for term in longest_first)
        self._pattern = re.compile(rf"({'|'.join(terms)})\s*")

    @property
    def vocab_size(self) -> int:
        return len(self._terms)

    def token_names(self) -> list[str]:
        return list(self._terms)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Raises ValueError if a part of it is not in the vocabulary."""
        ids, at = [], 0
        text = text.strip()
        while at < len(text):
            match = self._pattern.match(text, at)
            if match is None:
                raise ValueError(f"{text[at : at + 40]!r} is not in the vocabulary of these worlds")
            ids.append(self._ids[match[1]])
            at = match.end()
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, with single spaces, without padding and end."""
        text, digit_before = "", False
        for term in (self._terms[i] for i in ids):
            if term in (PAD, END):
                continue
            joined = term in _NO_SPACE_BEFORE or (digit_before and term.isdigit()) or not text
            text += term if joined else " " + term
            digit_before = term.isdigit()
        return text


def _names(world: World) -> list[str]:
    groups = (*world.place_groups, *world.type_groups, world.padding_places, world.padding_types)
    return [world.attribute, world.plain_noun, world.weighted_noun, *(name for group in groups for name in group)]


@lru_cache
def word_tokenizer(worlds: tuple[str, ...]) -> WordTokenizer:
    """The tokenizer of these worlds, made once."""
    return WordTokenizer(worlds)
