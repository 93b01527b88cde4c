"""`Heard`: all that a conversation is between two turns, and how it is kept in the file of a memory."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from reverie.errors import UserError, plain
from reverie.memory.memory import Memory
from reverie.talk.answer import AWAKE, awake_ids

TURNS = "turns"  # among a memory's notes: how often the model was spoken to


@dataclass(frozen=True)
class Heard:
    """A memory, the tokens heard since the last sleep, and how often the model was spoken to."""

    memory: Memory  # without notes on the other two
    awake: tuple[int, ...] = ()
    turns: int = 0

    @property
    def num_tokens(self) -> int:
        """Of all that was heard, slept over or not."""
        return int(self.memory.tokens[0]) + len(self.awake)

    @classmethod
    def of(cls, memory: Memory) -> Heard:
        """What a memory holds, be it one of a text or a conversation that was saved. Raises UserError for bad notes."""
        notes, awake = dict(memory.notes), awake_ids(memory)
        turns, _ = notes.pop(TURNS, "0"), notes.pop(AWAKE, None)
        if not turns.isdecimal() or len(turns) > 18:
            raise UserError(f'the note "{TURNS}" of the memory must be a number, got {turns!r}')
        return cls(replace(memory, notes=notes), tuple(awake), int(turns))

    def as_memory(self, model: str) -> Memory:
        """The memory with notes, from which `of` makes the same again; `model` is the model's name."""
        notes = {"model": plain(model), AWAKE: json.dumps(self.awake), TURNS: str(self.turns)}
        return replace(self.memory, notes={**self.memory.notes, **notes})
