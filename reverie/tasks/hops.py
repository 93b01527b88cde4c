"""Hops: who points to whom, in plain English, and who comes k steps after somebody."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from reverie.tasks.base import Split
from reverie.tasks.fillers import fill
from reverie.tasks.reading import Page, Question, ReadingTask

# Each name and role with the space before it is one token of SmolLM2, each verb is two.
_NAMES = """
Tom Ann Ben Sam Max Kim Joe Eve Dan Lee Sue Bob Ray Amy Meg Ted Jim Tim Ron Ian Roy Leo Kay Jane Mary John Paul Luke
Peter James David Emma Anna Lucy Alice Sarah Laura Helen Susan Linda Karen Nancy Betty Julia Maria Diana Emily Clara
Ellen Ruth Jack Adam Alan Eric Gary Greg Henry George Frank Fred Harry Kevin Larry Oscar Simon Steve Victor Walter
Robert Daniel Martin Oliver Thomas William Charles Edward Richard Michael Andrew Arthur Albert Carl Kate Lisa Mike Nick
Ryan Scott Tony Jessica Rachel Sophie Hannah Ivan
"""
_ROLES = """
mentor neighbour friend boss doctor teacher coach lawyer guide dentist tutor landlord partner rival student tenant
assistant agent editor client guard driver cook nurse guest cousin tailor baker trainer colleague hero sponsor
"""
NAMES, ROLES = tuple(_NAMES.split()), tuple(_ROLES.split())
VERBS = "points to", "writes to", "waves to", "talks to", "listens to", "looks at", "smiles at", "waits for", "sits by"
Verb = Literal[
    "points to", "writes to", "waves to", "talks to", "listens to", "looks at", "smiles at", "waits for", "sits by"
]
_NUMBERS = "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight"

STATEMENT_TOKENS, ROLE_TOKENS = 5, 6  # of " Tom points to Ann." and " Tom's mentor is Ann."


_WHO = "who is tied to whom"  # all that a page says: any other page that is read later changes the answers


class Link(NamedTuple):
    """A statement about two people; `role` is None where all are tied by one verb."""

    subject: str
    role: str | None
    object: str


class Hops(ReadingTask):
    """Task: `num_chains` closed chains of `num_people` people as shuffled sentences; who comes k steps after somebody?

    With one relation a sentence is " Tom points to Ann." (5 tokens of SmolLM2) and a question "Two hops after Tom is"
    (6 with the line break before, whatever k). With several a sentence is " Tom's mentor is Ann." (6 tokens), where
    each text draws its `num_relations` roles and each link one of these, and the question for k = 2 is "The neighbour
    of the mentor of Tom is". A text is a line break and its sentences, filled with sentences about nobody.

    Distractors are links that no question needs: with one relation, of people outside the chains; with several, of
    people in the chains, to whom somebody has another role. Nobody has two links of the same relation, so each
    question has one answer, which is never the person asked about. Within a text a name is one person.

    Depth is k. In training the questions of a text come in any order, in tests k takes turns from a random start.

    Training and tests draw from different random streams. Neither names nor texts are held out, but repetitions are
    unlikely: with the default settings there are more than 10^12 texts.
    """

    depth_name: ClassVar[str] = "hops k"

    name: Literal["hops"] = "hops"
    window_tokens: int = Field(default=41, ge=16, le=2**20, description="tokens of a window; as sleep.window_size")
    num_people: int = Field(default=8, ge=2, le=100_000, description="of a chain")
    num_chains: int = Field(default=1, ge=1, le=100_000)
    num_names: int = Field(default=16, ge=3, le=len(NAMES), description="names that people are drawn from")
    num_relations: int = Field(default=1, ge=1, le=len(ROLES), description="of a text; roles if there are several")
    max_hops: int = Field(default=4, ge=1, le=len(_NUMBERS), description="questions ask for 1..max_hops steps")
    distractors: int = Field(default=0, ge=0, le=100_000, description="links that no question needs")
    verb: Verb = Field(default="points to", description="ties people where there is one relation")

    @model_validator(mode="after")
    def _people_suffice(self) -> Hops:
        people = self.num_people * self.num_chains
        if people > self.num_names:
            raise ValueError(
                f"num_people {self.num_people} times num_chains {self.num_chains} must not exceed "
                f"num_names {self.num_names}, since nobody is in two chains"
            )
        if self.max_hops >= self.num_people:
            raise ValueError(
                f"max_hops {self.max_hops} must be less than num_people {self.num_people}, "
                f"since chains are closed and no answer may be the person asked about"
            )
        free = people * (self.num_relations - 1) if self.num_relations > 1 else self.num_names - people
        if self.distractors > free:
            of = "other roles of the people in chains" if self.num_relations > 1 else "names outside the chains"
            raise ValueError(f"distractors {self.distractors} must be at most {free}, the number of {of}")
        return self

    @model_validator(mode="after")
    def _fits(self) -> Hops:
        each = ROLE_TOKENS if self.num_relations > 1 else STATEMENT_TOKENS
        links = self.num_people * self.num_chains + self.distractors
        if 1 + links * each > self.text_tokens:
            raise ValueError(
                f"{links} sentences of {each} tokens and a line break need {1 + links * each} tokens, but "
                f"window_tokens {self.window_tokens} times num_windows {self.num_windows} is {self.text_tokens}"
            )
        asked = 3 + 3 * self.max_hops if self.num_relations > 1 else 6
        if asked > self.window_tokens:
            raise ValueError(f"window_tokens {self.window_tokens} must hold a question of {asked} tokens")
        return self

    def page(self, split: Split, rng: np.random.Generator, count: Callable[[str], int], deepest: int | None) -> Page:
        """A text with the questions of all people and all k up to `deepest`."""
        chains, links = self._draw(rng)
        shuffled = [links[i] for i in rng.permutation(len(links))]
        filled = fill([self._sentence(link) for link in shuffled], self.text_tokens, count, rng, "the links of hops")
        starts = dict(zip(shuffled, filled.starts, strict=True))
        questions = {
            k: [self._question(chain, i, k, starts) for chain in chains for i in range(len(chain))]
            for k in self.depths()
        }
        return Page(
            filled.text,
            self._in_order(questions, split, rng, self.max_hops if deepest is None else max(deepest, 1)),
            frozenset([_WHO]),
        )

    def _draw(self, rng: np.random.Generator) -> tuple[list[list[Link]], list[Link]]:
        """The chains, each in the order of its steps, and all links, distractors too."""
        names = [NAMES[i] for i in rng.permutation(self.num_names)]
        used = self.num_people * self.num_chains
        roles = [ROLES[i] for i in rng.permutation(len(ROLES))[: self.num_relations]]
        chains = []
        for start in range(0, used, self.num_people):
            people = names[start : start + self.num_people]
            drawn = [roles[rng.integers(len(roles))] if len(roles) > 1 else None for _ in people]
            chains.append([Link(*link) for link in zip(people, drawn, people[1:] + people[:1], strict=True)])
        taken = [link for chain in chains for link in chain]
        if len(roles) == 1:
            free = [(name, None) for name in names[used:]]
        else:
            has = {(link.subject, link.role) for link in taken}
            free = [(name, role) for name in names[:used] for role in roles if (name, role) not in has]
        for i in rng.permutation(len(free))[: self.distractors]:
            subject, role = free[i]
            others = [name for name in names if name != subject]
            taken.append(Link(subject, role, others[rng.integers(len(others))]))
        return chains, taken

    def _sentence(self, link: Link) -> str:
        if link.role is None:
            return f" {link.subject} {self.verb} {link.object}."
        return f" {link.subject}'s {link.role} is {link.object}."

    def _question(self, chain: list[Link], first: int, hops: int, starts: dict[Link, int]) -> Question:
        """Who comes `hops` steps after the subject of link number `first`; `starts` are the places of sentences."""
        steps = [chain[(first + i) % len(chain)] for i in range(hops)]
        asked = f"{_NUMBERS[hops - 1]} hop{'s' if hops > 1 else ''} after {steps[0].subject}"
        if steps[0].role is not None:
            asked = "The " + "".join(f"{step.role} of the " for step in reversed(steps))
            asked = asked.removesuffix("the ") + steps[0].subject
        stop = starts[steps[-1]] + len(self._sentence(steps[-1])) - 1  # before the full stop
        answer = steps[-1].object
        return Question(f"{asked} is", answer, "cloze", "hops", _WHO, (stop - len(answer), stop), hops)

    def _in_order(
        self, questions: dict[int, list[Question]], split: Split, rng: np.random.Generator, deepest: int
    ) -> tuple[Question, ...]:
        """Those of at most `deepest` hops in any order; in tests one of each number of hops, in turn."""
        shuffled = {k: [of_k[i] for i in rng.permutation(len(of_k))] for k, of_k in questions.items()}
        if split == "train":
            every = [question for k, of_k in shuffled.items() if k <= deepest for question in of_k]
            return tuple(every[i] for i in rng.permutation(len(every)))
        start = int(rng.integers(self.max_hops))
        turns = [(start + i) % self.max_hops + 1 for i in range(self.max_hops)]
        return tuple(question for asked in zip(*(shuffled[k] for k in turns), strict=True) for question in asked)

    def depths(self) -> range:
        """Numbers of hops."""
        return range(1, self.max_hops + 1)

    def chance(self) -> dict[int, float]:
        """1 / (num_names - 1) at each k: every name but the one asked about is equally likely."""
        return dict.fromkeys(self.depths(), 1 / (self.num_names - 1))

    def chance_exact(self) -> float:
        """Chance of guessing all questions of a text, each by itself."""
        asked = min(self.num_questions, self.num_people * self.num_chains * self.max_hops)
        return (1 / (self.num_names - 1)) ** asked
