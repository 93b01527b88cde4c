"""Questions about what a page of notes says, and about what it does not say."""

from __future__ import annotations

from typing import NamedTuple

from reverie.tasks.base import Split
from reverie.tasks.notes.page import Told, Writer, key_of, phrases
from reverie.tasks.notes.wordings import Wording
from reverie.tasks.notes.words import Draw
from reverie.tasks.reading import NOTHING_KNOWN, Form, Question

NEW_QUESTION = 0.4  # share of questions in tests that are in the held-out wording
_SHORT = 0.25  # share of questions that call somebody by the first name alone, where that is enough
_ASKING = 0.08  # share of whole questions with words before, such as "Remind me:"
_TRIES = 4  # for a question that was not asked yet


class Forms(NamedTuple):
    """Shares of questions that begin a sentence, and of those that are asked in a chat, whichever they are."""

    cloze: float
    chat: float

    def one(self, draw: Draw) -> Form:
        """A form, as often as its share says."""
        if not draw.chance(self.cloze):
            return self.whole(draw)
        return "chat_cloze" if draw.chance(self.chat) else "cloze"

    def whole(self, draw: Draw) -> Form:
        """A form of whole questions."""
        return "chat" if draw.chance(self.chat) else "qa"


def about_fact(fact: Told, split: Split, draw: Draw, forms: Forms, number: int) -> list[Question]:
    """Questions about a fact that differ, at most `number`."""
    found: dict[tuple[str, str], Question] = {}
    for _ in range(number * _TRIES):
        form = forms.one(draw)
        wordings = fact.relation.ending if form in ("cloze", "chat_cloze") else fact.relation.asked
        wording, new = _wording(wordings, split, draw)
        short = fact.subject.short if draw.chance(_SHORT) else ""
        before, _ = wording.filled(short or fact.subject.name, fact.value)
        text = before[0].upper() + before[1:].rstrip()
        if not form.endswith("cloze") and draw.chance(_ASKING):
            text = f"{draw.one(phrases()['asking'])} {text[0].lower()}{text[1:]}"
        kind = _kind(fact, new or fact.new_wording)
        found[form, text] = Question(text, fact.value, form, kind, fact.key, fact.place)
        if len(found) == number:
            break
    return list(found.values())


def about_nothing(told: list[Told], writer: Writer, forms: Forms) -> Question | None:
    """A question to which the page has no answer: a subject's lack of a relation, or a subject that it never names."""
    draw, some = writer.draw, writer.draw.one(told)
    if draw.chance(0.5) and (stranger := writer.new_subject(some.subject.kind)):
        kind, about, relation = "unknown/subject", stranger, some.relation
    else:
        about, said = some.subject, {fact.relation for fact in told}
        lacking = [r for r in writer.relations[about.kind] if key_of(r, about) not in writer.told]
        near = [r for r in lacking if r in said]  # told of others
        if not lacking:
            return None
        kind, relation = "unknown/relation", draw.one(near if near and draw.chance(0.5) else lacking)
    wording, _ = _wording(relation.asked, writer.split, draw)
    text = wording.filled(about.name)[0]
    return Question(text, NOTHING_KNOWN, forms.whole(draw), kind, key_of(relation, about))


def _wording(wordings: tuple[Wording, ...], split: Split, draw: Draw) -> tuple[Wording, bool]:
    """One of these wordings, and whether it is the one that training never uses."""
    new = split == "test" and draw.chance(NEW_QUESTION)
    return (wordings[-1] if new else draw.one(wordings[:-1])), new


def _kind(fact: Told, new_wording: bool) -> str:
    """What is new in a question, beside names and values; or that the page has changed what it asks for."""
    if fact.changed:
        return "changed"
    if fact.relation.held_out:
        return "kinds"
    if new_wording:
        return "wordings"
    return "numbers" if fact.is_number else "names"
