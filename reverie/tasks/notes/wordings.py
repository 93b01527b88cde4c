"""Kinds of relation, and the wordings that state facts and ask for them, read from the text files of this folder."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

TRAINED = ("people.txt", "things.txt")
HELD_OUT = "held_out.txt"

_LETTERS = string.ascii_uppercase
_HEAD = re.compile(r"\[(.+)\] (.+) -> (.+)")
# "uni…", "uk…" and the like begin with the sound of "you".
_VOWEL = re.compile(r"(?!uni|uk|eu|us|one)[aeiou]|hour|hono|hones|heir", re.IGNORECASE)


class Wording(NamedTuple):
    """A sentence around its value; a question has all of it before, and no value."""

    before: str  # with the fields {s}, the subject, and {a}, the article of the value
    after: str

    @property
    def begins_with_subject(self) -> bool:
        return self.before.startswith("{s}")

    def filled(self, subject: str, value: str = "") -> tuple[str, str]:
        """The text before the value and the text after it, for this subject and value."""
        before, after = (part.format(s=subject, a=article(value)) for part in self)
        return before, after


class Relation(NamedTuple):
    """A kind of fact; the last of `ending` and of `asked` are for tests alone."""

    name: str
    subject: str  # the kind of its subject
    value: str  # the kind of its value
    held_out: bool  # the whole of it is for tests
    ending: tuple[Wording, ...]  # statements that end with the value
    other: tuple[Wording, ...]  # statements with the value elsewhere
    asked: tuple[Wording, ...]
    changed: tuple[Wording, ...]  # statements that the value is another now


def article(value: str) -> str:
    """The indefinite article that goes before a value."""
    return "an" if _VOWEL.match(value) else "a"


@lru_cache(maxsize=1)
def relations() -> tuple[Relation, ...]:
    """All kinds of relation; those held out come last."""
    return (*(r for name in TRAINED for r in _read(name, held_out=False)), *_read(HELD_OUT, held_out=True))


@lru_cache(maxsize=2)
def relations_of(held_out: bool) -> dict[str, tuple[Relation, ...]]:
    """Those that are held out, or those that are not, by the kind of their subject."""
    some = [relation for relation in relations() if relation.held_out == held_out]
    return {kind: tuple(r for r in some if r.subject == kind) for kind in dict.fromkeys(r.subject for r in some)}


def sections(name: str) -> dict[str, list[str]]:
    """Lines of a text file in this folder by the head in brackets above them, without comments and empty lines."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in (files("reverie.tasks.notes") / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            lines = found.setdefault(line, [])
        elif line and not line.startswith("#"):
            lines.append(line)
    return found


def _read(file: str, held_out: bool) -> Iterator[Relation]:
    for head, lines in sections(file).items():
        if (match := _HEAD.fullmatch(head)) is None:
            raise ValueError(f"{file}: {head!r} must be a name in brackets, then the kinds of subject -> value")
        asked, changed, stated = ([line for line in lines if line[0] in mark] for mark in ("?", ">", _LETTERS))
        stated = [_wording(line) for line in stated]
        yield Relation(
            name=match[1],
            subject=match[2],
            value=match[3],
            held_out=held_out,
            ending=tuple(wording for wording in stated if not wording.after),
            other=tuple(wording for wording in stated if wording.after),
            asked=tuple(_wording(line.removeprefix("? ")) for line in asked),
            changed=tuple(_wording(line.removeprefix("> ")) for line in changed),
        )


def _wording(line: str) -> Wording:
    line = re.sub(r"\b[aA] V\b", "{a} V", re.sub(r"\bS\b", "{s}", line))
    before, *after = re.split(r"\bV\b", line, maxsplit=1)
    return Wording(before, *after) if after else Wording(line, "")
