"""Parser of GSM-Infinite problems. Of the vocabulary it knows only the nouns of totals.

It shares nothing with the generator, so that it can check what that makes.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

# The noun of a total tells what it sums: the counts of a place, or each count times its average. The first half of each
# set is the benchmark's, the second half our own.
PLAIN_NOUNS = frozenset({"adult animals", "schools", "movies", "grown animals", "colleges", "films"})
WEIGHTED_NOUNS = frozenset(
    {
        "newborn animal children",
        "teachers from all schools",
        "movie nominations",
        "young animals",
        "tutors from all colleges",
        "film prizes",
    }
)

Form = Literal["unknown", "number", "copy", "sum", "difference"]
Kind = Literal["UNKNOWN", "INT", "Y", "c+Y", "c*Y", "sum2", "diff2", "c sum2", "c diff2", "sum3+"]

_TOTAL, _AVERAGE = "total number of ", "average number of "
_LONGEST_NAME = 500

# Names are free text with " in ", " and ", periods and commas, so a text is cut only where a quantity's head follows.
_HEAD = r"(?:average |total )?number of "
_QUANTITY = re.compile(rf"the (?:number of (?!{_HEAD})(.+)|((?:average|total) number of .+))")
_SENTENCE_END = re.compile(rf"(?:\. |\.?\n)(?=The {_HEAD})")
_SEPARATOR = re.compile(rf"(,? and |, )(?=the {_HEAD})")
_EQUALS = re.compile(rf" equals (?=-?[0-9]|the (?:{_HEAD}|sum of |difference between ))")
_IMPOSSIBLE_IN_NAME = re.compile(rf"\b[Tt]he {_HEAD}|{_EQUALS.pattern}")
_RIGHT_SIDE = re.compile(r"(?:(-?[0-9]{1,18})(?: (plus|times) |$))?(?:the (sum of|difference between) )?(.*)")
_UNKNOWN_COUNT = " exists, and its number is greater than 0"
_UNKNOWN_AVERAGE = " is greater than 0"


class NotAProblemError(ValueError):
    """The text does not follow the grammar; the message is one sentence that names what cannot be read."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A sentence. A quantity is its name: what follows "the number of", or "average number of ...", "total ...".

    `constant` is the value, or the number before the operands: a factor if `is_factor`, else a summand.
    """

    subject: str
    form: Form
    operands: tuple[str, ...] = ()
    constant: int | None = None
    is_factor: bool = False

    @property
    def operations(self) -> int:
        """Number of operations of the fact: its operands, a number being one of them; 1 for the unknown."""
        return 1 if self.form == "unknown" else len(self.operands) + (self.constant is not None)

    @property
    def kind(self) -> Kind:
        """Form of the right-hand side, with c a number and Y a quantity; "sum3+" may have a c too."""
        if not self.operands:
            return "UNKNOWN" if self.form == "unknown" else "INT"
        if len(self.operands) > 2:
            return "sum3+"
        if self.form == "copy":
            return "Y" if self.constant is None else "c*Y" if self.is_factor else "c+Y"
        if self.form == "sum":
            return "sum2" if self.constant is None else "c sum2"
        return "diff2" if self.constant is None else "c diff2"


@dataclass(frozen=True, slots=True)
class Problem:
    """Facts in the order of the text, repeated ones included, and the quantity that the question asks for."""

    facts: tuple[Fact, ...]
    asked: str

    def mentioned(self) -> dict[str, None]:
        """Quantities in the text and the question, in order, as keys."""
        return _names(self.facts) | {self.asked: None}

    def given(self) -> dict[str, int]:
        """Numbers stated for quantities that can also be computed: totals, and those with a formula."""
        with_formula = {fact.subject for fact in self.facts if fact.operands}
        return {
            fact.subject: fact.constant
            for fact in self.facts
            if fact.constant is not None and not fact.operands
            if is_total(fact.subject) or fact.subject in with_formula
        }


def parse(problem: str, question: str) -> Problem:
    """Parse a problem. Sentences end with a period or a line break; other whitespace does not matter.

    Raises:
        NotAProblemError: a sentence or the question does not follow the grammar.
    """
    lines = [" ".join(line.split()) for line in problem.splitlines()]
    text = "\n".join(line for line in lines if line)
    if not text:
        raise NotAProblemError("the problem is empty")
    facts = list[Fact]()
    for sentence in _SENTENCE_END.split(text.removesuffix(".")):
        with _reading("sentence", sentence):
            facts.append(_fact(sentence))
    question = " ".join(question.split())
    with _reading("question", question):
        return Problem(tuple(facts), _asked(question, facts))


def is_total(name: str) -> bool:
    """True for the name of a total, weighted or not."""
    return name.startswith(_TOTAL)


def is_average(name: str) -> bool:
    """True for the name of an average."""
    return name.startswith(_AVERAGE)


def noun_and_place(total: str) -> tuple[str, str]:
    """Noun (one of `PLAIN_NOUNS` or `WEIGHTED_NOUNS`) and place of a total."""
    noun, _, place = total.removeprefix(_TOTAL).partition(" in ")
    return noun, place


def counted_by(average: str) -> str:
    """Name of the count that an average belongs to: "{type} in {place}"."""
    return average.removeprefix(_AVERAGE).partition(" per ")[2]


def in_words(name: str) -> str:
    """A quantity's name as a phrase with article."""
    return f"the {name}" if is_total(name) or is_average(name) else f"the number of {name}"


@contextmanager
def _reading(what: str, text: str) -> Iterator[None]:
    try:
        yield
    except NotAProblemError as error:
        raise NotAProblemError(f'cannot read the {what} "{_shortened(text)}": {error}') from None


def _fact(sentence: str) -> Fact:
    if not sentence.startswith("The "):
        raise NotAProblemError('it does not begin with "The number of" or the like')
    text = "t" + sentence[1:]
    for ending, of_average in ((_UNKNOWN_COUNT, False), (_UNKNOWN_AVERAGE, True)):
        if text.endswith(ending):
            name = _name(text.removesuffix(ending))
            if is_total(name) or is_average(name) != of_average:
                raise NotAProblemError('a count "exists, and its number is" greater than 0, an average "is"')
            return Fact(name, "unknown")
    cut = _EQUALS.search(text)
    if cut is None:
        raise NotAProblemError("it does not say what the quantity equals")
    subject = _name(text[: cut.start()])
    form, constant, is_factor, operands = _right_side(text[cut.end() :])
    if is_total(subject) and form != "number":
        raise NotAProblemError("a total equals nothing but a number")
    return Fact(subject, form, operands, constant, is_factor)


def _right_side(text: str) -> tuple[Form, int | None, bool, tuple[str, ...]]:
    """Form, constant, whether that is a factor, and operands, from what follows "equals"."""
    parts = _RIGHT_SIDE.fullmatch(text)
    if parts is None:
        raise NotAProblemError("the line after it does not begin a sentence")
    number, link, combination, body = parts.groups()
    constant = None if number is None else int(number)
    if not body:
        return "number", constant, False, ()
    pieces = _SEPARATOR.split(body)
    form = _form(combination, tuple(pieces[1::2]))
    return form, constant, link == "times", tuple(_name(piece) for piece in pieces[::2])


def _form(combination: str | None, separators: tuple[str, ...]) -> Form:
    if combination is None:
        if separators:
            raise NotAProblemError("several quantities need a sum or a difference")
        return "copy"
    if separators == (" and ",):
        return "sum" if combination == "sum of" else "difference"
    if combination == "difference between" or len(separators) < 2:
        raise NotAProblemError(f'"the {combination}" needs two quantities with "and" between them')
    if separators[-1] != ", and " or set(separators[:-1]) != {", "}:
        raise NotAProblemError('a sum of three or more has ", " between them and ", and " before the last')
    return "sum"


def _name(quantity: str) -> str:
    """Name of the quantity in "the number of ...", "the average number of ... per ..." or "the total number of ..."."""
    if len(quantity) > _LONGEST_NAME:
        raise NotAProblemError(f"a quantity has more than {_LONGEST_NAME} characters")
    match = _QUANTITY.fullmatch(quantity)
    name = (match[1] or match[2]) if match else ""
    if not name or _IMPOSSIBLE_IN_NAME.search(name):
        raise NotAProblemError(f'"{_shortened(quantity)}" is not one quantity')
    if is_total(name):
        noun, instance = noun_and_place(name)[0], name.removeprefix(_TOTAL)
        if noun not in PLAIN_NOUNS and noun not in WEIGHTED_NOUNS:
            raise NotAProblemError(f'"{_shortened(noun)}" is not among the known nouns of totals')
    else:
        instance = counted_by(name) if is_average(name) else name
    what, _, place = instance.partition(" in ")
    if not what or not place:
        raise NotAProblemError(f'"{_shortened(quantity)}" does not name a type in a place')
    return name


def _asked(question: str, facts: Iterable[Fact]) -> str:
    """The quantity asked for. If names contain " does ", facts decide where a type ends and its place begins."""
    if question.startswith(("What is the average ", "What is the total ")) and question.endswith("?"):
        return _name(question.removeprefix("What is ").removesuffix("?"))
    if not question.startswith("How many ") or not question.endswith(" have?"):
        raise NotAProblemError('it asks "How many ..." or "What is ..."')
    text = question.removeprefix("How many ").removesuffix(" have?")
    words = text.split(" does ")
    if len(words) < 2 or len(text) > _LONGEST_NAME:
        raise NotAProblemError("it does not name a type and a place")
    names = [f"{' does '.join(words[:i])} in {' does '.join(words[i:])}" for i in range(1, len(words))]
    mentioned = _names(facts) if len(names) > 1 else names
    return _name("the number of " + next((name for name in names if name in mentioned), names[0]))


def _names(facts: Iterable[Fact]) -> dict[str, None]:
    return {name: None for fact in facts for name in (fact.subject, *fact.operands)}


def _shortened(text: str) -> str:
    line = text[:200].replace("\n", " ")
    return line if len(text) <= 200 else f"{line}..."
