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
_BESIDE = 0.06  # of the others; joined to a sentence about something else
_SHORT = 0.4  # share of names that are shortened after the first time
_RELATED = 0.6  # of first names after another person: "her son Pavel"
_MET = 0.12  # share of people who are met before a fact is told
_HEADED = 0.25  # share of pages with days as headings
_HEADING = 0.12  # share of their sentences that have one before
_PARAGRAPHS = 0.25  # share of pages whose blocks begin a line
_LINES = 0.1  # share of pages whose sentences do
_FILLER = 0.12
_BEGINNING = 0.08
_CORRECTION = 0.3  # share of changes that are told as corrections


# Subjects of these kinds differ in the middle: "the gas bill" and "the water bill".
_ALIKE = frozenset({"bill", "club", "contest", "course", "errand", "project", "shop"})
_PEOPLE = frozenset({"person", "own name", "someone", "doctor", "woman", "man", "woman's name"})  # values
_COMMON = frozenset({"my", "the", "our", "The", "No", "Mr", "Mrs", "Ms", "Dr", "Aunt", "Uncle"})


class Told(NamedTuple):
    """A fact that a page states."""

    relation: Relation
    subject: Subject
    value: str
    place: tuple[int, int]  # characters [start, stop) of the value
    new_wording: bool  # in the held-out one
    changed: bool = False  # the page has stated another value before

    @property
    def key(self) -> str:
        return key_of(self.relation, self.subject)

    @property
    def is_number(self) -> bool:
        return self.relation.value in NUMBERS


class Before(NamedTuple):
    """The sentence before."""

    subject: Subject
    open: bool  # whether another may be joined to it
    begins: bool  # with its subject, so that "and" may do for "and she"


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
        self._named: set[str] = set()  # subjects that the page has named
        self._taken: set[str] = set()  # words of names and values that must not name anything else
        self._due: list[tuple[int, Relation, Subject]] = []  # changes, and how many facts are told before
        self._facts = 0
        self._last: Before | None = None
        self._headed = draw.chance(_HEADED)
        self._line = draw.chance(_PARAGRAPHS), draw.chance(_LINES)  # whether blocks and sentences begin a line
        self._gap = " "

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def block(self, enough: int) -> None:
        """Write some facts that belong together, until the page has enough tokens."""
        self._gap = "\n" if self._line[0] else " "
        if self._headed:
            self._heading()
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

    def count_again(self) -> None:
        """Count the tokens of the whole page: where sentences are joined, it has fewer than they had."""
        self.tokens = self._count(self.text)

    def new_subject(self, kind: str) -> Subject | None:
        """A subject whose name begins and ends otherwise than those before; None if none is found."""
        for _ in range(_TRIES):
            found = subject(kind, self.split, self.draw)
            words = _marks(found)
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
        if self._headed and self.draw.chance(_HEADING):
            self._heading()
        if self.draw.chance(_FILLER):
            self._write(self.draw.one(phrases()["fillers"]))
            self._last = None
        first = about.name not in self._named
        if first and about.pronoun and self.draw.chance(_MET):
            sentence = self.draw.one(phrases()["met"]).replace("{s}", about.name)
            self._write(sentence[0].upper() + sentence[1:])
            self._named.add(about.name)
            self._last = Before(about, open=True, begins=False)
        new = self.split == "test" and self.draw.chance(NEW_STATEMENT)
        wording = relation.ending[-1] if new else self.draw.one((*relation.ending[:-1], *relation.other))
        new_value = self._new_value(relation, about)
        opening, joint = "", ""
        if self._pronoun_fits(about, wording):
            before, after = _with_pronoun(wording, about, new_value)
            if self._last and self._last.open and self.draw.chance(_JOINED):
                may_drop = self._last.begins and _verb_follows(wording)
                joint = self.draw.one((", and", ";", " and")[: 2 + may_drop])
                before = wording.filled("", new_value)[0].lstrip() if joint == " and" else before
        else:
            before, after = wording.filled(self._called(about, wording), new_value)
            if self._last and self._last.open and self.draw.chance(_BESIDE):
                joint = self.draw.one((";", ", while"))
            elif self.draw.chance(_BEGINNING):
                opening = self.draw.one(phrases()["beginnings"])
            if joint or opening:
                before = before if wording.begins_with_subject else _within(before)
        self._tell(Told(relation, about, new_value, (0, 0), new), opening, before, after, joint)
        may_be_joined = not (opening or joint or after or set(",:;") & set(before))
        self._last = Before(about, may_be_joined, _verb_follows(wording))

    def _change(self, relation: Relation, about: Subject) -> None:
        """Write that a fact has changed."""
        if relation.changed and not self.draw.chance(_CORRECTION):
            opening, wording = "", self.draw.one(relation.changed)
        else:
            opening, wording = self.draw.one(phrases()["corrections"]), self.draw.one(relation.ending[:-1])
        new_value = self._new_value(relation, about)
        before, after = wording.filled(self._called(about, wording), new_value)
        if opening and not wording.begins_with_subject:
            before = _within(before)
        self._tell(Told(relation, about, new_value, (0, 0), False, changed=True), opening, before, after)
        self._last = None

    def _pronoun_fits(self, about: Subject, wording: Wording) -> bool:
        """Whether the sentence before is about the same person, and this one begins with her or him."""
        same = self._last is not None and self._last.subject == about and about.pronoun != ""
        return same and wording.begins_with_subject and self.draw.chance(_PRONOUN)

    def _called(self, about: Subject, wording: Wording) -> str:
        """What a subject is called in a sentence without pronoun."""
        first, before = about.name not in self._named, self._last.subject if self._last else None
        self._named.add(about.name)
        if not first:
            return about.short if about.short and self.draw.chance(_SHORT) else about.name
        single = about.kind == "person" and " " not in about.name
        if single and before and before.pronoun and wording.begins_with_subject and self.draw.chance(_RELATED):
            return f"{before.possessive} {self.draw.one(phrases()[f'{about.pronoun} is'])} {about.name}"
        return about.name

    def _new_value(self, relation: Relation, about: Subject) -> str:
        """A value that is not on the page, nor a name in it; any, if none is found."""
        found, words = "", {""}
        for _ in range(_TRIES):
            found = value(relation.value, about, self.split, self.draw)
            words = {found, *(set(found.split()) - _COMMON if relation.value in _PEOPLE else ())}
            if not words & self._taken:
                break
        self._taken |= words
        return found

    def _tell(self, told: Told, opening: str, before: str, after: str, joint: str = "") -> None:
        """Write a sentence of these parts and remember the fact."""
        if joint:
            self._parts[-1] = self._parts[-1].removesuffix(".") + joint[0].strip()
            self._length -= joint == " and"
            before = f"{joint[1:].strip()} {before}".lstrip()
            self._gap = " "
        else:
            before = f"{opening} {before}" if opening else before
            before = before[:1].upper() + before[1:]
        start = self._length + bool(self._parts) + len(before)
        self.told[told.key] = told._replace(place=(start, start + len(told.value)))
        self._write(f"{before}{told.value}{after}.")
        self._facts += 1

    def _heading(self) -> None:
        """Write a day above what follows, where there is none yet."""
        if self._parts and self._parts[-1].strip() in phrases()["headings"]:
            return
        self._gap = "\n" if self._line[0] else self._gap
        self._write(self.draw.one(phrases()["headings"]))
        self._gap = " "
        self._last = None

    def _write(self, sentence: str) -> None:
        part = f"{self._gap}{sentence}" if self._parts else sentence
        self._gap = "\n" if self._line[1] else " "
        self._parts.append(part)
        self._length += len(part)
        self.tokens += self._count(part)


def _marks(about: Subject) -> set[str]:
    """What no other subject and no person may have in its name."""
    words = about.name.split()
    ends = {" ".join(words[1:])} if about.kind in _ALIKE else {words[0], words[-1], *about.short.split()}
    if about.short and words[0] == "my":
        ends.add(words[-2])  # "my sister Thea" is no other than "my sister"
    return ({about.name} | ends) - _COMMON


def _within(sentence: str) -> str:
    """The beginning of a sentence as it is in the middle of one."""
    return sentence if sentence.startswith("I ") else sentence[:1].lower() + sentence[1:]


def _verb_follows(wording: Wording) -> bool:
    """Whether the verb comes right after the subject, so that it can be told without it."""
    return wording.before.startswith("{s} ") and not wording.before.startswith("{s} and ")


def _with_pronoun(wording: Wording, about: Subject, value: str) -> tuple[str, str]:
    """What goes before the value and after it, with a pronoun for the subject."""
    if wording.before.startswith("{s}'s "):
        wording = wording._replace(before=about.possessive + wording.before.removeprefix("{s}'s"))
    return wording.filled(about.pronoun, value)


@lru_cache(maxsize=1)
def phrases() -> dict[str, list[str]]:
    """Sentences that state no fact and words that go with one, by what they are for."""
    return {head[1:-1]: lines for head, lines in sections("fillers.txt").items()}
