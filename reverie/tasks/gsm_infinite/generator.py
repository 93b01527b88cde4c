"""Generator of problems of a wanted kind, size and length; each is a function of (split, seed, step, index)."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from random import Random
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from reverie.errors import UserError
from reverie.tasks.base import Split
from reverie.tasks.gsm_infinite.core import Core, Level, Mode
from reverie.tasks.gsm_infinite.draw import LARGEST_NUMBER, MAX_OPERATIONS, draw_core
from reverie.tasks.gsm_infinite.padding import Measure, padding_sentences
from reverie.tasks.gsm_infinite.solution import solution
from reverie.tasks.gsm_infinite.text import Pieces, core_sentences, question_text
from reverie.tasks.gsm_infinite.worlds import WORLDS, WorldName

QuestionPosition = Literal["first", "last"]
Frame = tuple[str, ...]

_TRIES = 50_000  # few draws fit if values must be small and operations many
_MISFITS = 1000  # most cores that are too long, or cannot be padded into a narrow range, before giving up
_HELD_OUT = 8  # one core in so many belongs to the test split, and training never shows it

INSTRUCTION = (
    "Read the facts and answer the question. The total number of {plain} in a place counts all types that are "
    "mentioned for that place anywhere in the text; a type that is never mentioned for it does not exist there. "
    "Averages may differ from place to place. The total number of {weighted} in a place is the sum, over its types, of "
    "how many there are times the average number of {attribute} of each. Give a whole number."
)


class ProblemConfig(BaseModel):
    """Which problems to draw; world, level, mode and number of operations are each drawn uniformly."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    worlds: tuple[WorldName, ...] = Field(default=("wildlife", "education", "film"), min_length=1)
    levels: tuple[Level, ...] = Field(
        default=("medium", "hard"), min_length=1, description="medium has counts and totals, hard averages too"
    )
    modes: tuple[Mode, ...] = Field(
        default=("forward", "reverse"),
        min_length=1,
        description="reverse gives the last value and asks for the first number",
    )
    min_operations: int = Field(default=1, ge=1, le=MAX_OPERATIONS)
    max_operations: int = Field(default=8, ge=1, le=MAX_OPERATIONS)
    length: tuple[int, int] | None = Field(
        default=None, description="of the prompt, shortest and longest; padded to a length drawn from these"
    )
    question_position: QuestionPosition = "first"
    instruction: bool = Field(default=True, description="the prompt begins by saying what totals mean")
    max_value: int = Field(default=1000, ge=LARGEST_NUMBER, description="no quantity of the core is larger")

    @field_validator("worlds", "levels", "modes")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"names {next(v for v in value if value.count(v) > 1)} twice, each must occur once")
        return value

    @model_validator(mode="after")
    def _ranges(self) -> ProblemConfig:
        if self.min_operations > self.max_operations:
            raise ValueError(
                f"min_operations {self.min_operations} must not exceed max_operations {self.max_operations}"
            )
        if self.length is not None and not 1 <= self.length[0] <= self.length[1]:
            raise ValueError(f"length {list(self.length)} must be [shortest, longest] with 1 <= shortest <= longest")
        return self


@dataclass(frozen=True)
class Problem:
    """A problem as text, with the core it was made from."""

    world: str
    level: Level
    mode: Mode
    operations: int
    problem: str
    question: str
    solution: str
    answer: int
    context: tuple[str, ...] = field(repr=False)  # the prompt up to the last fact, in pieces that begin with words
    cue: tuple[str, ...] = field(repr=False)  # the rest of the prompt, up to the answer
    core: Core = field(repr=False, compare=False)

    @property
    def prompt(self) -> str:
        """Text that a model reads before it answers."""
        return "".join((*self.context, *self.cue))[1:]


def draw_problem(
    config: ProblemConfig,
    split: Split,
    seed: int,
    step: int,
    index: int,
    operations: int,
    *,
    measure: Measure = len,
    reserved: int = 0,
) -> Problem:
    """Draw the problem with this index.

    Args:
        operations: number of operations of its answer.
        measure: length of a piece of the prompt, in the unit of `config.length`.
        reserved: length that is kept free for what the caller adds; -1 if the unit is characters, since the prompt is
            without the space of its first piece.

    Raises:
        UserError: no problem of this kind keeps to `config.max_value`, is as short as `config.length`, or can be padded
            to it.
    """
    rng = Random(((seed * 2 + (split == "test")) << 128) | (step << 64) | index)
    if len(kinds := list(product(config.levels, config.modes))) > 1:  # before any try: what fits easily would prevail
        level, mode = rng.choice(kinds)
        config = config.model_copy(update={"levels": (level,), "modes": (mode,)})
    shortest, misfits = None, 0
    for _ in range(_TRIES):
        mode = rng.choice(config.modes)
        mode = mode if operations > 1 else "forward"  # with one operation there is nothing to reverse
        world, level = WORLDS[rng.choice(config.worlds)], rng.choice(config.levels)
        core = draw_core(rng, world, level, mode, operations, config.max_value)
        if core is None:
            continue
        sentences = core_sentences(core)
        if _is_held_out(sentences) != (split == "test"):
            continue
        before, after = _frame(core, config)
        if config.length is None:
            return _finish(rng, core, operations, sentences, before, after)
        low, high = config.length
        filled = reserved + _length((before, *sentences, after), measure)
        shortest = filled if shortest is None else min(shortest, filled)
        if filled <= high:
            padding = padding_sentences(rng, core, rng.randint(low, high) - filled, high - filled, measure)
            lengths = [_length([pieces], measure) for pieces in padding]
            missing = low - filled - sum(lengths)
            if missing <= 0:
                return _finish(rng, core, operations, sentences + padding, before, after)
            if lengths and missing > 2 * max(lengths):
                break  # the vocabulary of padding is exhausted
        misfits += 1
        if misfits == _MISFITS:
            break
    raise UserError(_no_fit(config, operations, shortest))


def _length(sentences: Iterable[Iterable[str]], measure: Measure) -> int:
    return sum(measure(piece) for pieces in sentences for piece in pieces)


def _is_held_out(sentences: list[Pieces]) -> bool:
    """True if these facts, in any order, belong to the test split: small problems repeat, but not across splits."""
    text = "\n".join(sorted("".join(pieces) for pieces in sentences))
    return zlib.crc32(text.encode()) % _HELD_OUT == 0


def _frame(core: Core, config: ProblemConfig) -> tuple[Frame, Frame]:
    """Pieces of the prompt before and after the facts."""
    world, question = core.world, (" Question:", " " + question_text(core.quantities[core.asked], core.world))
    nouns = {"plain": world.plain_noun, "weighted": world.weighted_noun, "attribute": world.attribute}
    before = (" " + INSTRUCTION.format(**nouns),) if config.instruction else ()
    if config.question_position == "first":
        return (*before, *question, " Problem:"), (" Answer:",)
    return (*before, " Problem:"), (*question, " Answer:")


def _finish(rng: Random, core: Core, operations: int, sentences: list[Pieces], before: Frame, after: Frame) -> Problem:
    rng.shuffle(sentences)
    facts = [piece for pieces in sentences for piece in pieces]
    return Problem(
        world=core.world.name,
        level=core.level,
        mode=core.mode,
        operations=operations,
        problem="".join(facts)[1:],
        question=question_text(core.quantities[core.asked], core.world),
        solution=solution(core, rng),
        answer=core.values[core.asked],
        context=(*before, *facts),
        cue=after,
        core=core,
    )


def _no_fit(config: ProblemConfig, operations: int, shortest: int | None) -> str:
    """The error's sentence if no problem fits; `shortest` is the least length found, None if there was no core."""
    modes = config.modes if operations > 1 else ("forward",)
    sort = " or ".join(f"{level} {mode}" for level, mode in product(config.levels, modes))
    count = f"{operations} operation{'s' * (operations > 1)}"
    kind = f"a {sort} problem with {count} ({', '.join(config.worlds)})"
    if shortest is None or config.length is None:
        return f"{kind} cannot keep all its values at or below max_value {config.max_value}; allow larger ones"
    low, high = config.length
    if shortest > high:
        return f"{kind} takes {shortest} or more before padding, so length must allow that, got {low}-{high}"
    return f"{kind} cannot be padded to a length within {low}-{high}: allow a wider range, or less than {low}"
