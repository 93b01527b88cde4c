"""Pages of notes: which facts are stated, in which order and words, and what changes later."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from reverie.tasks.base import Split
from reverie.tasks.notes.wordings import Relation, Wording, relations_of, sections
from reverie.tasks.notes.words import NUMBERS, Draw, Subject, subject, value

HELD_OUT_KINDS = 0.3  # share of test pages whose relations are all held out
NEW_STATEMENT = 0.2  # share of statements in tests that are in the held-out wording

_FACTS = 8  # of a block
_TRIES = 20  # for a name or value that is new on the page
_SAME_RELATIONS = 1 / 3  # share of blocks in which few relations recur for several subjects
_GROUPED = 0.5  # share of blocks that tell all about one subject before the next
_PRONOUN = 0.7  # of the sentences that can have one
_JOINED = 0.35  # of those with a pronoun
_FILLER = 0.12
_BEGINNING = 0.08
_CORRECTION = 0.3  # share of changes that are told as corrections


class Told(NamedTuple):
    """A fact that a page states."""

    relation: Relation
    subject: Subject
    value: str
    place: tuple[int, int]  # characters [start, stop) of the value
    new_wording: bool  # in the held-out one

    @property
    def key(self) -> str:
        return key_of(self.relation, self.subject)

    @property
    def is_number(self) -> bool:
        return self.relation.value in NUMBERS


def key_of(relation: Relation, about: Subject) -> str:
    """The name of a fact, whatever its value."""
    return f"{relation.name}|{about.name}"


class Writer:
    """Writes a page; `text` and `told`, the newest fact of each key, grow with each block."""

    def __init__(self, split: Split, draw: Draw, count: Callable[[str], int], changed: float) -> None:
        self.split: Split = split
        self.draw = draw
        self.relations = relations_of(held_out=split == "test" and draw.chance(HELD_OUT_KINDS))
        self._any_relations = [relation for some in self.relations.values() for relation in some]
        self.told: dict[str, Told] = {}
        self.tokens = 0
        self._count = count
        self._changed = changed
        self._parts: list[str] = []
        self._length = 0
        self._taken: set[str] = set()  # words of names and values that must not name anything else
        self._due: list[tuple[int, Relation, Subject]] = []  # changes, and how many facts are told before
        self._facts = 0
        self._last: tuple[Subject, bool] | None = None  # of the sentence before: its subject, and if it may be joined

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def block(self, enough: int) -> None:
        """Write some facts that belong together, until the page has enough tokens."""
        for relation, about in self._plan():
            if self.tokens >= enough:
                return
            due = [change for change in self._due if change[0] <= self._facts]
            self._due = [change for change in self._due if change[0] > self._facts]
            for _, old, whom in due:
                self._change(old, whom)
            self._state(relation, about)
            if self.draw.chance(self._changed):
                self._due.append((self._facts + self.draw.below(_FACTS), relation, about))

    def new_subject(self, kind: str) -> Subject | None:
        """A subject whose name begins and ends otherwise than those before; None if none is found."""
        for _ in range(_TRIES):
            found = subject(kind, self.split, self.draw)
            words = {found.name, found.name.split()[0], found.name.split()[-1]} - {"my", "the"}
            if not words & self._taken:
                self._taken |= words
                return found
        return None

    def _plan(self) -> list[tuple[Relation, Subject]]:
        """What a block tells, in this order: relations and subjects."""
        facts = self._few_relations() if self.draw.chance(_SAME_RELATIONS) else self._many_relations()
        if self.draw.chance(_GROUPED):
            order = {about: i for i, about in enumerate(dict.fromkeys(about for _, about in facts))}
            return sorted(facts, key=lambda fact: order[fact[1]])
        return facts

    def _few_relations(self) -> list[tuple[Relation, Subject]]:
        """Two or three relations of one kind of subject; one that has a single relation is told for each subject."""
        chosen = self.draw.one(self._any_relations)
        relations = self.draw.shuffled(self.relations[chosen.subject])[:3]
        drawn = [self.new_subject(chosen.subject) for _ in range(4 + self.draw.below(2))]
        facts = [(relation, about) for relation in relations for about in drawn if about]
        return self.draw.shuffled(facts)[:_FACTS]

    def _many_relations(self) -> list[tuple[Relation, Subject]]:
        """Any relations, where some subjects have several."""
        facts = []
        for _ in range(4 + self.draw.below(4)):
            relation = self.draw.one(self._any_relations)
            if about := self.new_subject(relation.subject):
                facts.append((relation, about))
        for _, about in self.draw.shuffled(facts) * 2:
            if len(facts) < _FACTS:
                facts.append((self.draw.one(self.relations[about.kind]), about))
        return self.draw.shuffled(list(dict.fromkeys(facts)))

    def _state(self, relation: Relation, about: Subject) -> None:
        """Write a fact."""
        if self.draw.chance(_FILLER):
            self._write(self.draw.one(_phrases()["fillers"]))
            self._last = None
        new = self.split == "test" and self.draw.chance(NEW_STATEMENT)
        wording = relation.ending[-1] if new else self.draw.one((*relation.ending[:-1], *relation.other))
        new_value = self._new_value(relation, about)
        before, after = wording.filled(about.name, new_value)
        opening = ""
        if self._pronoun_fits(about, wording):
            before = _with_pronoun(wording, about, new_value)
            if self._last and self._last[1] and self.draw.chance(_JOINED):
                self._parts[-1] = self._parts[-1].removesuffix(".") + ","
                opening = "and"
        elif self.draw.chance(_BEGINNING):
            opening = self.draw.one(_phrases()["beginnings"])
            before = before if wording.begins_with_subject else before[0].lower() + before[1:]
        self._tell(Told(relation, about, new_value, (0, 0), new), opening, before, after)
        self._last = about, opening == "" and not after and ":" not in before and "," not in before

    def _change(self, relation: Relation, about: Subject) -> None:
        """Write that a fact has changed."""
        if relation.changed and not self.draw.chance(_CORRECTION):
            opening, wording = "", self.draw.one(relation.changed)
        else:
            opening, wording = self.draw.one(_phrases()["corrections"]), self.draw.one(relation.ending[:-1])
        new_value = self._new_value(relation, about)
        before, after = wording.filled(about.name, new_value)
        if opening and not wording.begins_with_subject:
            before = before[0].lower() + before[1:]
        self._tell(Told(relation, about, new_value, (0, 0), False), opening, before, after)
        self._last = None

    def _pronoun_fits(self, about: Subject, wording: Wording) -> bool:
        """Whether the sentence before is about the same person, and this one begins with her or him."""
        same = self._last is not None and self._last[0] == about and about.pronoun != ""
        return same and wording.begins_with_subject and self.draw.chance(_PRONOUN)

    def _new_value(self, relation: Relation, about: Subject) -> str:
        """A value that is not on the page; any, if none is found."""
        found = ""
        for _ in range(_TRIES):
            if (found := value(relation.value, about, self.split, self.draw)) not in self._taken:
                break
        self._taken.add(found)
        return found

    def _tell(self, told: Told, opening: str, before: str, after: str) -> None:
        """Write a sentence of these parts and remember the fact."""
        if opening != "and":
            before = f"{opening} {before}" if opening else before
            before = before[0].upper() + before[1:]
        else:
            before = f"and {before}"
        start = self._length + bool(self._parts) + len(before)
        self.told[told.key] = told._replace(place=(start, start + len(told.value)))
        self._write(f"{before}{told.value}{after}.")
        self._facts += 1

    def _write(self, sentence: str) -> None:
        part = f" {sentence}" if self._parts else sentence
        self._parts.append(part)
        self._length += len(part)
        self.tokens += self._count(part)


def _with_pronoun(wording: Wording, about: Subject, value: str) -> str:
    """What goes before the value, with a pronoun for the subject."""
    if wording.before.startswith("{s}'s "):
        wording = wording._replace(before=about.possessive + wording.before.removeprefix("{s}'s"))
    return wording.filled(about.pronoun, value)[0]


@lru_cache(maxsize=1)
def _phrases() -> dict[str, list[str]]:
    return {head[1:-1]: lines for head, lines in sections("fillers.txt").items()}
