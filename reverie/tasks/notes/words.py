"""Names and values by kind: words, what is composed of them, and numbers. A fifth of each kind is for tests alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import product
from typing import NamedTuple, TypeVar

import numpy as np

from reverie.tasks.base import Split
from reverie.tasks.notes.wordings import sections

_T = TypeVar("_T")

_MONTHS = ("January", "February", "March", "April", "May", "June")
_MONTHS += ("July", "August", "September", "October", "November", "December")
_HOURS = ["twelve", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"
_FIELD = re.compile(r"\{([^}]*)\}")
_NAMED = 0.6  # share of people who have a first name and a surname; a third of the others are "my sister" and the like
_ORDINAL = 0.3  # share of dates that are like "the 3rd of May"
_IN_WORDS = 0.3  # share of times


class Draw:
    """Random choices from a NumPy generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def below(self, stop: int) -> int:
        """An integer in 0..stop-1."""
        return int(self._rng.random() * stop)

    def chance(self, share: float) -> bool:
        """True with this probability."""
        return self._rng.random() < share

    def one(self, some: Sequence[_T]) -> _T:
        """One of them."""
        return some[self.below(len(some))]

    def shuffled(self, some: Sequence[_T]) -> list[_T]:
        """All of them, in random order."""
        return [some[i] for i in self._rng.permutation(len(some))]


class Subject(NamedTuple):
    """What facts are about."""

    kind: str
    name: str  # "Marta Olsen", "my sister", "my sister Thea", "Mr Brand", "the cellar"
    pronoun: str = ""  # "she" or "he", where one can tell
    possessive: str = ""  # "her" or "his"
    short: str = ""  # what it may be called once it is known: "Marta", "Thea"


def split_of(word: str) -> Split:
    """The split that a word or number belongs to: a fifth of all is for tests."""
    return "test" if blake2b(word.lower().encode(), digest_size=4).digest()[0] % 5 == 0 else "train"


def word(kind: str, split: Split, draw: Draw) -> str:
    """A name or value of this kind, of words of this split; a kind in capital letters has its words so."""
    plain = kind[0].lower() + kind[1:]
    if number := NUMBERS.get(plain):
        while split_of(drawn := number(split, draw)) != split:
            pass
        return drawn
    pattern = draw.one(_lists()[plain][split])
    drawn = "".join(part if i % 2 == 0 else word(part, split, draw) for i, part in enumerate(pattern))
    return drawn if kind == plain else _title(drawn)


_HER, _HIM = ("she", "her"), ("he", "his")
_PRONOUNS = {"woman's name": _HER, "her": _HER, "man's name": _HIM, "him": _HIM}
_KNOWN_AS = {"relative": _HER, "male relative": _HIM, "her title": _HER, "his title": _HIM, "woman": _HER, "man": _HIM}


def subject(kind: str, split: Split, draw: Draw) -> Subject:
    """A subject of this kind, of words of this split."""
    if kind == "person" and draw.chance(_NAMED):
        who = draw.one(("woman's name", "man's name"))
        name = word(who, split, draw)
        return Subject(kind, name, *_PRONOUNS[who], short=name.split()[0])
    if kind == "contact" or (kind == "person" and draw.chance(1 / 3)):
        who = draw.one(("her", "him", "companion") if kind == "person" else ("her", "him", "professional"))
        return Subject(kind, word(who, split, draw), *_PRONOUNS.get(who, ()))
    if kind == "person":
        return _known_as(draw.one(tuple(_KNOWN_AS)), split, draw)
    the = "the " if kind == "place" else ""  # a place is a value as well, as in "in the cellar"
    return Subject(kind, the + word(kind, split, draw))


def _known_as(how: str, split: Split, draw: Draw) -> Subject:
    """Somebody known as "my sister Thea", "Mrs Olsen" or "Thea"."""
    name, short = word(how, split, draw), ""
    if "relative" in how:
        short = word("woman" if _KNOWN_AS[how] == _HER else "man", split, draw)
        name = f"{name} {short}"
    return Subject("person", name, *_KNOWN_AS[how], short=short)


def value(kind: str, about: Subject, split: Split, draw: Draw) -> str:
    """A value of this kind for a subject, of words of this split."""
    if kind == "own name":
        kind = {"she": "woman's name", "he": "man's name"}.get(about.pronoun, "person")
    return word(kind, split, draw)


@lru_cache(maxsize=1)
def _lists() -> dict[str, dict[Split, list[list[str]]]]:
    """Patterns of each kind by split: pieces that are, in turn, text and kinds of word to put in."""
    lists = {}
    for head, lines in sections("words.txt").items():
        entries = [entry.strip() for line in lines for entry in line.split(",")]
        words = list(dict.fromkeys(word for entry in entries for word in _alternatives(entry)))
        composed = [word for word in words if "{" in word]
        lists[head[1:-1]] = {
            split: [_FIELD.split(word) for word in composed or words if composed or split_of(word) == split]
            for split in ("train", "test")
        }
    return lists


def _alternatives(entry: str) -> Iterator[str]:
    """All words that an entry with (a|b) stands for."""
    parts = re.split(r"\(([^)]*)\)", entry)
    return map("".join, product(*([part] if i % 2 == 0 else part.split("|") for i, part in enumerate(parts))))


def _title(text: str) -> str:
    """A text whose words begin with capital letters."""
    return re.sub(r"(^|[ -])([a-z])", lambda match: match[1] + match[2].upper(), text)


def _between(first: int, last: int) -> Callable[[Split, Draw], str]:
    return lambda split, draw: str(first + draw.below(last + 1 - first))


def _digits(count: int, draw: Draw) -> str:
    """That many digits, the first of which is not 0."""
    return str(10 ** (count - 1) + draw.below(9 * 10 ** (count - 1)))


def _letters(count: int, draw: Draw) -> str:
    return "".join(draw.one(_LETTERS) for _ in range(count))


def _hours(first: int, last: int, half: str) -> Callable[[Split, Draw], str]:
    """Times of this half of the day, am or pm, which half of them name; some are in words, as "half past six"."""

    def time(split: Split, draw: Draw) -> str:
        hour, minute = first + draw.below(last + 1 - first), 5 * draw.below(12)
        if draw.chance(_IN_WORDS):
            return _in_words(hour, minute)
        return draw.one((f"{hour}:{minute:02d}", f"{(hour - 1) % 12 + 1}:{minute:02d} {half}"))

    return time


def _in_words(hour: int, minute: int) -> str:
    """A time of day as one says it, without the half of the day."""
    if minute == 0:
        return f"{_HOURS[hour % 12]} o'clock"
    if minute == 30:
        return f"half past {_HOURS[hour % 12]}"
    minutes = {5: "five", 10: "ten", 15: "a quarter", 20: "twenty", 25: "twenty-five"}[min(minute, 60 - minute)]
    return f"{minutes} {f'past {_HOURS[hour % 12]}' if minute < 30 else f'to {_HOURS[(hour + 1) % 12]}'}"


def _date(split: Split, draw: Draw) -> str:
    month, day = draw.one(_MONTHS), 1 + draw.below(28)
    if draw.chance(_ORDINAL):
        end = "th" if 10 < day < 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
        return f"the {day}{end} of {month}"
    return f"{day} {month}" if draw.chance(0.7) else f"{month} {day}"


def _price(split: Split, draw: Draw) -> str:
    amount = _digits(2 + draw.below(2), draw)
    return draw.one((f"${amount}.{10 + draw.below(90)}", f"{amount} dollars", f"{amount} euros", f"{amount} pounds"))


def _phone(split: Split, draw: Draw) -> str:
    return draw.one(
        (f"0{_digits(3, draw)} {_digits(6, draw)}", f"{_digits(3, draw)}-{_digits(4, draw)}", _digits(4, draw))
    )


def _code(split: Split, draw: Draw) -> str:
    return draw.one((_digits(4, draw), _digits(4, draw), _digits(5, draw), _letters(1, draw) + _digits(4, draw)))


def _password(split: Split, draw: Draw) -> str:
    return word("password word", split, draw) + draw.one(("", "-", "_")) + _digits(2 + draw.below(2), draw)


def _user_name(split: Split, draw: Draw) -> str:
    return draw.one((".", "_", "")).join(word("password word", split, draw) for _ in range(2))


def _email(split: Split, draw: Draw) -> str:
    names = [word("password word", split, draw) for _ in range(2)]
    return f"{names[0]}{10 + draw.below(90)}@{names[1]}.{draw.one(('org', 'net', 'com'))}"


def _steps(first: int, last: int, step: int, unit: str) -> Callable[[Split, Draw], str]:
    return lambda split, draw: f"{first + step * draw.below((last - first) // step + 1)} {unit}"


_MORNING, _EVENING = _hours(5, 11, "am"), _hours(12, 22, "pm")

NUMBERS: dict[str, Callable[[Split, Draw], str]] = {
    "age": _between(18, 97),
    "height": _between(145, 204),
    "room": _between(100, 999),
    "bus": _between(10, 699),
    "miles": _between(11, 480),
    "pounds": _between(11, 480),
    "minutes": _between(12, 180),
    "platform": _between(2, 99),
    "year": _between(1650, 2024),
    "recent year": _between(1935, 2024),
    "time": lambda split, draw: draw.one((_MORNING, _EVENING))(split, draw),
    "morning time": _MORNING,
    "evening time": _EVENING,
    "date": _date,
    "price": _price,
    "phone": _phone,
    "code": _code,
    "password": _password,
    "user name": _user_name,
    "address": lambda split, draw: f"{2 + draw.below(198)} {word('street', split, draw)}",
    "seat": lambda split, draw: f"{2 + draw.below(90)}{_letters(1, draw)}",
    "plate": lambda split, draw: f"{_letters(2, draw)} {_digits(4, draw)}",
    "flight": lambda split, draw: f"{_letters(2, draw)} {_digits(3, draw)}",
    "serial": lambda split, draw: f"{_letters(2, draw)}-{_digits(5, draw)}",
    "card": lambda split, draw: _digits(5, draw),
    "start number": _between(11, 399),
    "page": _between(11, 799),
    "shoe size": lambda split, draw: f"{33 + draw.below(16)}{draw.one(('', '', '.5'))}",
    "pin": lambda split, draw: _digits(4, draw),
    "email": _email,
    "server": lambda split, draw: f"{word('server word', split, draw)}-{2 + draw.below(60)}",
    "grams": _steps(60, 900, 5, "grams"),
    "degrees": _steps(120, 240, 1, "degrees"),
    "room degrees": _steps(2, 41, 1, "degrees"),
    "metres": _steps(3, 160, 1, "metres"),
    "centimetres": _steps(9, 290, 1, "centimetres"),
    "dose": lambda split, draw: _steps(2, 60, 1, draw.one(("drops", "millilitres", "milligrams")))(split, draw),
}
