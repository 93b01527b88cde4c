"""An independent reader of notes: regular expressions made of the wordings, and rules for what a name looks like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

FOLDER = files("reverie.tasks.notes")
HELD_OUT = "held_out.txt"

_NAMES = {
    "person": r"[Mm]y [A-Za-z -]+|[A-Z][A-Za-z]+ [A-Z][A-Za-z]+",
    "town": r"[A-Z][a-z]+",
    "firm": r"[A-Z][A-Za-z]+ (?:and )?[A-Z][a-z]+",
    "single dish": r"[A-Za-z' ]+",
    "chore": r"[A-Za-z]+ing [a-z ]+",
}
_ANY_NAME = r"(?:[Mm]y|[Tt]he) [A-Za-z' -]+"  # of contacts, vehicles, places, …
_SENTENCE = re.compile(r"\S.*?\.(?= [A-Z]|$)")
_JOINT = re.compile(r", and (?=(?:she|he|her|his) )")


class Pattern(NamedTuple):
    """A wording as a regular expression with the groups s, p (a possessive pronoun) and v."""

    relation: str
    kind: str  # of its subject
    held_out: bool  # training must not use it
    file: str
    text: re.Pattern[str]
    literal: int  # characters that are neither subject nor value


class Read(NamedTuple):
    """A fact as read."""

    subject: str
    value: str
    place: tuple[int, int]  # characters [start, stop)
    pattern: Pattern


class Patterns(NamedTuple):
    statements: tuple[Pattern, ...]
    clozes: tuple[Pattern, ...]
    asked: tuple[Pattern, ...]


@lru_cache(maxsize=1)
def patterns() -> Patterns:
    """All wordings."""
    statements, clozes, questions = [], [], []
    for file in ("people.txt", "things.txt", HELD_OUT):
        for block in re.split(r"^\[", (FOLDER / file).read_text(), flags=re.MULTILINE)[1:]:
            head, *lines = block.splitlines()
            name, subject = head.split(" -> ")[0].split("] ")
            asked = [line[2:] for line in lines if line.startswith("? ")]
            changed = [line[2:] for line in lines if line.startswith("> ")]
            stated = [line for line in lines if line[:1].isalpha()]
            ending = [line for line in stated if line.endswith("V")]
            new = file == HELD_OUT
            for line in (*stated, *changed):
                statements.append(_pattern(name, subject, new or line == ending[-1], file, f"{line}."))
            for line in ending:
                clozes.append(_pattern(name, subject, new or line == ending[-1], file, line[:-2]))
            for line in asked:
                questions.append(_pattern(name, subject, new or line == asked[-1], file, line))
    return Patterns(tuple(statements), tuple(clozes), tuple(questions))


def _pattern(relation: str, kind: str, held_out: bool, file: str, line: str) -> Pattern:
    name = _NAMES.get(kind, _ANY_NAME)
    marked = re.sub(r"\b[aA]( V|$)", r"@\1", line)
    text = re.escape(marked).replace("\\ ", " ").replace("@", "[Aa]n?")
    text = re.sub(r"^S's ", f"(?:(?P<s>{name})'s|(?P<p>[Hh]er|[Hh]is)) ", text)
    text = re.sub(r"^S ", f"(?P<s>{name}|[Ss]he|[Hh]e) ", text)
    text = re.sub(r"\bS\b", f"(?P<s>{name})", text) if "(?P<s>" not in text else text
    text = re.sub(r"\bV\b", "(?P<v>.+)", text)
    if text[0].isalpha():
        text = f"[{text[0]}{text[0].lower()}]{text[1:]}"
    return Pattern(relation, kind, held_out, file, re.compile(text), len(re.sub(r"\b(S|V|a V)\b", "", line)))


@lru_cache(maxsize=8)
def phrases(head: str) -> tuple[str, ...]:
    """Lines of fillers.txt under a head."""
    return tuple((FOLDER / "fillers.txt").read_text().split(f"[{head}]\n")[1].split("\n[")[0].splitlines())


def read(text: str) -> list[Read]:
    """The facts that a page states, first to last. Raises ValueError for a sentence that is nothing known."""
    facts: list[Read] = []
    for start, clause in _clauses(text):
        if clause in phrases("fillers"):
            continue
        for opening in (*phrases("beginnings"), *phrases("corrections"), "and"):
            if clause.startswith(f"{opening} "):
                start, clause = start + len(opening) + 1, clause[len(opening) + 1 :]
                break
        pattern, match = best(clause, patterns().statements)
        subject = plain(match["s"] or match.groupdict()["p"], pattern)
        if subject.lower() in ("she", "he", "her", "his"):
            subject = facts[-1].subject
        facts.append(Read(subject, match["v"], (start + match.start("v"), start + match.end("v")), pattern))
    return facts


def best(text: str, among: tuple[Pattern, ...]) -> tuple[Pattern, re.Match[str]]:
    """The wording that a text has word for word; the longest, where several fit."""
    fits = [(pattern, match) for pattern in among if (match := pattern.text.fullmatch(text))]
    if not fits:
        raise ValueError(f"no wording fits {text!r}")
    return max(fits, key=lambda fit: fit[0].literal)


def plain(name: str, pattern: Pattern) -> str:
    """A name as it stands within a sentence."""
    proper = pattern.kind in ("town", "firm") or (pattern.kind == "person" and not name.startswith("My "))
    return name if proper else name[0].lower() + name[1:]


def _clauses(text: str) -> Iterator[tuple[int, str]]:
    """Sentences with the character where each begins; one that joins two facts is taken apart."""
    for sentence in _SENTENCE.finditer(text):
        start, whole = sentence.start(), sentence[0]
        if joint := _JOINT.search(whole):
            yield start, f"{whole[: joint.start()]}."
            start, whole = start + joint.start() + 2, whole[joint.start() + 2 :]
        yield start, whole
