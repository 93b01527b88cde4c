"""A conversation with a model that sleeps: over its window when that is full, and whenever it is told to.

The session knows a memory, and the tokens heard since the last sleep. Sleep goes over those tokens afresh, so that what
it leaves depends on the words alone, not on how they were cut into turns.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from rich.filesize import decimal
from torch import Tensor

from reverie.errors import UserError
from reverie.memory.history import History
from reverie.memory.memory import Memory, sleep_over
from reverie.model import numbers
from reverie.sleep import Context, read
from reverie.talk.answer import starting_point
from reverie.talk.draw import PROSE_TEMPERATURE, choose
from reverie.talk.heard import Heard
from reverie.talk.sleeper import Sleeper, load_memory

LEAST_TEMPERATURE = 1e-3  # below, drawing takes the most likely token, until logits / temperature overflow
MOST_UNDONE = 8  # turns, each of which holds a memory
UNFINISHED = "\ufffd"  # what a tokenizer writes for the first bytes of a character


class Turn(NamedTuple):
    """What was said, and how the conversation stood before it."""

    text: str
    before: Heard
    context: Context


@dataclass(frozen=True)
class Nap:
    """One sleep of a conversation."""

    tokens: int
    passes: int
    seconds: float
    memory: Memory

    def sentence(self) -> str:
        """A sentence such as "slept over 512 tokens, 4 passes, 0.8 s; 12,288 tokens in memory, 1.2 MB"."""
        tokens = "1 token" if self.tokens == 1 else f"{self.tokens:,} tokens"
        passes = "1 pass" if self.passes == 1 else f"{self.passes} passes"
        return f"slept over {tokens}, {passes}, {self.seconds:.1f} s; {holds(self.memory)}"


def holds(memory: Memory) -> str:
    """The size of a memory in words, such as "12,288 tokens in memory, 1.2 MB"."""
    n = int(memory.tokens[0])
    return f"{n:,} {'token' if n == 1 else 'tokens'} in memory, {decimal(memory.nbytes)}"


class Chat:
    """A conversation.

    Args:
        memory: what the model knows at first, and how it sleeps; one that `save` wrote goes on with that conversation.
        num_sleep_passes, tolerance: of every sleep, also after `load`; as the memory has them if absent.
        temperature: of drawing tokens; at 0 the most likely one is taken, as `ask` does. If absent it is 0, and
            `PROSE_TEMPERATURE` for a language of prose, which does not repeat itself when it is drawn (`draw`).
        max_tokens: of an answer; the language's own if absent.
        on_sleep: called after every sleep.

    Raises:
        UserError: the memory is of several texts, or a number is out of range.
    """

    def __init__(
        self,
        sleeper: Sleeper,
        memory: Memory,
        *,
        num_sleep_passes: int | None = None,
        tolerance: float | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int = 0,
        on_sleep: Callable[[Nap], None] = lambda nap: None,
    ) -> None:
        prose = getattr(sleeper.language, "prose", False)
        temperature = (PROSE_TEMPERATURE if prose else 0.0) if temperature is None else temperature
        if temperature != 0 and not LEAST_TEMPERATURE <= temperature < math.inf:
            raise UserError(
                f"the temperature must be 0, for the most likely token, or from {LEAST_TEMPERATURE:g} on, got "
                f"{temperature:g}"
            )
        self.sleeper, self.temperature, self.prose, self.on_sleep = sleeper, temperature, prose, on_sleep
        self.num_sleep_passes, self.tolerance = num_sleep_passes, tolerance
        self.max_tokens = max_tokens or sleeper.language.max_answer_tokens
        self.random = torch.Generator(sleeper.device).manual_seed(seed)
        self._wake_up(memory)

    def _wake_up(self, memory: Memory) -> None:
        """Go on from a memory; one that is refused changes nothing."""
        config = memory.config.with_(num_sleep_passes=self.num_sleep_passes, tolerance=self.tolerance)
        heard = Heard.of(memory)
        self.context = starting_point(self.sleeper, memory)
        self.turns, self.awake, self.memory = heard.turns, [*heard.awake], replace(heard.memory, config=config)
        self._said = deque[Turn](maxlen=MOST_UNDONE)

    @property
    def _heard(self) -> Heard:
        return Heard(self.memory, tuple(self.awake), self.turns)

    @torch.no_grad()
    def say(
        self, text: str, write: Callable[[str], None] = lambda text: None, stopped: Callable[[], bool] = lambda: False
    ) -> str:
        """Tell the model something and return its answer, or "" where nothing was asked.

        Args:
            write: called with the answer piece by piece.
            stopped: whether the answer is to end, asked after every token; what was written counts as said.

        Raises:
            UserError: the model does not know a word; then it has heard nothing.
        """
        language = self.sleeper.language
        ids = self.sleeper.question(text, begun=self.turns > 0)
        self._said.append(Turn(text, self._heard, self.context))
        logits = self._hear(ids)
        self.turns += 1
        if not language.is_question(text):
            return ""
        said, shown = list[int](), ""
        while not said or (len(said) < self.max_tokens and said[-1] not in language.end_ids and not stopped()):
            if said:
                logits = self._hear(said[-1:])
            said.append(self._choose(logits, said))
            so_far = self.sleeper.decode(said)
            if so_far.startswith(shown) and not so_far.endswith(UNFINISHED):
                write(so_far[len(shown) :])
                shown = so_far
        if said[-1] not in language.end_ids or self.sleeper.decode(said[-1:]):
            self._hear(said[-1:])  # an end that is no word is heard with the next turn, which begins with it
        answer = self.sleeper.decode(said).rstrip(UNFINISHED)  # of a letter that was cut
        write(answer[len(shown) :])
        return answer

    @torch.no_grad()
    def sleep(self) -> bool:
        """Sleep over what was heard since the last time, if anything was; True if so."""
        if not self.awake:
            return False
        self._sleep_over(self.awake)
        return True

    def undo(self) -> str:
        """Take back the last turn, with its answer and all sleep since; returns what was said.

        Raises UserError if nothing was said since the chat began or was loaded, or so much was taken back already.
        """
        if not self._said:
            raise UserError(f"there is no turn to take back: {MOST_UNDONE} are kept, and none from before a load")
        text, before, self.context = self._said.pop()
        self.memory, self.awake, self.turns = before.memory, [*before.awake], before.turns
        return text

    def save(self, path: Path) -> None:
        """Write the conversation so far to a memory file, from which `load` goes on.

        Tokens awake are read again at once, here as there, so that both go on alike to the last bit.
        """
        kept = self._heard.as_memory(self.sleeper.name)
        kept.save(path)
        self.context = starting_point(self.sleeper, kept)

    def load(self, path: Path) -> None:
        """Go on with another conversation or memory; raises as `load_memory` does."""
        self._wake_up(load_memory(path, self.sleeper))

    def _sleep_over(self, ids: list[int]) -> None:
        """Read these tokens into the memory window by window, with a nap for each; nothing is awake after it."""
        history = History() if self.memory.history is None else self.memory.history.copy()
        for window in torch.tensor([ids], device=self.sleeper.device).split(self.memory.config.window_size, dim=1):
            before, begun = self.memory, time.perf_counter()
            self.memory = sleep_over(self.sleeper.sleeping, window, before.config, memory=before, history=history)
            passes = int(self.memory.passes[0] - before.passes[0])
            self.on_sleep(Nap(window.shape[1], passes, time.perf_counter() - begun, self.memory))
        self.context, self.awake = self.memory.context, []

    def _hear(self, ids: list[int]) -> Tensor:
        """Logits [vocab] after these tokens; the model sleeps before them and among them where the window is full."""
        heard, L = self.awake + ids, self.memory.config.window_size
        full = (len(heard) - 1) // L * L  # the last window is slept over when it is full and the next token comes
        if full:
            self._sleep_over(heard[:full])
            ids = heard[full:]
        tokens = torch.tensor([ids], device=self.sleeper.device)
        logits, self.context = read(self.sleeper.sleeping, tokens, self.context, self.memory.config, newest_only=True)
        self.awake = heard[full:]
        return numbers(logits[0, -1])

    def _choose(self, logits: Tensor, said: list[int]) -> int:
        return choose(logits, said, self.temperature, self.random, prose=self.prose)
