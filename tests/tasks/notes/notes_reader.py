"""An independent reader of notes: regular expressions made of the wordings, and rules for what a name looks like."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

FOLDER = files("reverie.tasks.notes")
HELD_OUT = "held_out.txt"

_NAMES = {
    "person": r"[Mm]y [A-Za-z -]+|[A-Z][a-z]+(?: [A-Z][A-Za-z]+)?",
    "book": r"[A-Z][a-z]+(?: (?:of|and the|in|[A-Z][a-z]+))* [A-Z][a-z]+",
    "town": r"[A-Z][a-z]+",
    "firm": r"[A-Z][A-Za-z]+ (?:and )?[A-Z][a-z]+",
    "single dish": r"[A-Za-z' ]+",
    "chore": r"[A-Za-z]+ing [a-z ]+",
}
_ANY_NAME = r"(?:[Mm]y|[Tt]he|[Oo]ur) [A-Za-z0-9' -]+"  # of contacts, vehicles, places, …
_VALUES = {"spot": r"(?:under|behind|beside|next to|on top of|in|at the back of) the [^;]+", "floor": "[^;]+ floor"}
_SENTENCE = re.compile(r"\S.*?\.(?=\s[A-Z]|$)")
_JOINTS = re.compile(r"; |, while |, and (?=(?:she|he|her|his) )| and ")


class Pattern(NamedTuple):
    """A wording as a regular expression with the groups s, p (a possessive pronoun) and v."""

    relation: str
    kind: str  # of its subject
    held_out: bool  # training must not use it
    file: str
    text: str  # the regular expression
    words: tuple[str, ...]  # what it cannot do without, in small letters
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
            name, kinds = head.split("] ")
            asked = [line[2:] for line in lines if line.startswith("? ")]
            changed = [line[2:] for line in lines if line.startswith("> ")]
            stated = [line for line in lines if line[:1].isalpha()]
            ending = [line for line in stated if line.endswith("V")]
            new = file == HELD_OUT
            for line in (*stated, *changed):
                statements.append(_pattern(name, kinds, new or line == ending[-1], file, f"{line}."))
            for line in ending:
                clozes.append(_pattern(name, kinds, new or line == ending[-1], file, line[:-2]))
            for line in asked:
                questions.append(_pattern(name, kinds, new or line == asked[-1], file, line))
    return Patterns(tuple(statements), tuple(clozes), tuple(questions))


def _pattern(relation: str, kinds: str, held_out: bool, file: str, line: str) -> Pattern:
    kind, value = kinds.split(" -> ")
    name = _NAMES.get(kind, _ANY_NAME)
    marked = re.sub(r"\b[aA]( V|$)", r"@\1", line)
    text = re.escape(marked).replace("\\ ", " ").replace("@", "[Aa]n?")
    text = re.sub(r"^S's ", f"(?:(?P<s>{name})'s|(?P<p>[Hh]er|[Hh]is)) ", text)
    text = re.sub(r"^S ", f"(?P<s>{name}|[Ss]he|[Hh]e) ", text)
    text = re.sub(r"\bS\b", f"(?P<s>{name})", text) if "(?P<s>" not in text else text
    text = re.sub(r"\bV\b", f"(?P<v>{_VALUES.get(value, '[^;]+')})", text)
    if text[0].isalpha():
        text = f"[{text[0]}{text[0].lower()}]{text[1:]}"
    words = tuple(part.lower().strip() for part in re.split(r"\b(?:S's|S|[aA] V|[aA]$|V)", line))
    return Pattern(relation, kind, held_out, file, text, words, len(re.sub(r"\b(S|V|a V)\b", "", line)))


@lru_cache(maxsize=8)
def phrases(head: str) -> tuple[str, ...]:
    """Lines of fillers.txt under a head."""
    return tuple((FOLDER / "fillers.txt").read_text().split(f"[{head}]\n")[1].split("\n[")[0].splitlines())


def read(text: str) -> list[Read]:
    """The facts that a page states, first to last. Raises ValueError for a sentence that is nothing known."""
    facts: list[Read] = []
    subjects: list[str] = []  # the newest is last
    for sentence in _SENTENCE.finditer(text):
        if sentence[0] in (*phrases("fillers"), *phrases("headings")):
            continue
        if met := _met(sentence[0]):
            subjects.append(met)
        else:
            facts += _facts(sentence[0], sentence.start(), subjects)
    return facts


def resolved(name: str, subjects: list[str]) -> str:
    """The subject of a page that a name means; the name itself, where it is new."""
    fits = [some for some in subjects if some != name and name in (some.split()[0], some.split()[-1])]
    return fits[0] if fits and name not in subjects and " " not in name else name


def _met(sentence: str) -> str | None:
    """The person whom this sentence introduces."""
    for phrase in phrases("met"):
        match = re.fullmatch(re.escape(phrase).replace(r"\{s\}", f"({_NAMES['person']})"), sentence)
        if match:
            return re.sub("^My ", "my ", match[1])
    return None


def _facts(sentence: str, start: int, subjects: list[str]) -> list[Read]:
    """What a sentence says of one or two subjects; those are noted."""
    for joint in _JOINTS.finditer(sentence):
        try:
            noted = list(subjects)
            head, tail = f"{sentence[: joint.start()]}.", sentence[joint.end() :]
            if met := _met(head):
                first = []
                noted.append(met)
            else:
                first = [_fact(head, start, noted)]
            dropped = f"{noted[-1]} " if joint[0] == " and " else ""
            second = _fact(dropped + tail, start + joint.end() - len(dropped), noted)
        except ValueError:
            continue
        subjects[:] = noted
        return [*first, second]
    return [_fact(sentence, start, subjects)]


def _fact(clause: str, start: int, subjects: list[str]) -> Read:
    for opening in (*phrases("beginnings"), *phrases("corrections")):
        if clause.startswith(f"{opening} "):
            start, clause = start + len(opening) + 1, clause[len(opening) + 1 :]
            break
    relatives = "|".join((*phrases("she is"), *phrases("he is")))
    if related := re.match(f"(?:[Hh]er|[Hh]is) (?:{relatives}) (?=[A-Z])", clause):
        start, clause = start + related.end(), clause[related.end() :]
    pattern, match = best(clause, patterns().statements)
    subject = plain(match["s"] or match.groupdict()["p"], pattern)
    if subject.lower() in ("she", "he", "her", "his"):
        subject = subjects[-1]
    elif pattern.kind == "person":
        subject = resolved(subject, subjects)
    subjects.append(subject)
    return Read(subject, match["v"], (start + match.start("v"), start + match.end("v")), pattern)


@lru_cache(maxsize=8192)
def _compiled(text: str) -> re.Pattern[str]:
    return re.compile(text)


def best(text: str, among: tuple[Pattern, ...]) -> tuple[Pattern, re.Match[str]]:
    """The wording that a text has word for word; the longest, where several fit."""
    small = text.lower()
    likely = [pattern for pattern in among if all(word in small for word in pattern.words)]
    fits = [(pattern, match) for pattern in likely if (match := _compiled(pattern.text).fullmatch(text))]
    if not fits:
        raise ValueError(f"no wording fits {text!r}")
    return max(fits, key=lambda fit: fit[0].literal)


def plain(name: str, pattern: Pattern) -> str:
    """A name as it stands within a sentence."""
    proper = pattern.kind in ("town", "firm", "book") or (pattern.kind == "person" and not name.startswith("My "))
    return name if proper else name[0].lower() + name[1:]
