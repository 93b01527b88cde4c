"""`Row`: one text that is heard and gone on with, a call of the model at a time; `Batch`: several that write together.

Sleep goes over one window after the other, afresh from the memory before it, as in `reverie chat`: what it leaves
depends on the tokens alone, not on how they came. What is written in a batch is what each would write alone, to
rounding, and no rounding outlives the answer: its tokens are slept over like any others, and read again at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from reverie.errors import UserError
from reverie.memory.history import History
from reverie.memory.memory import Memory, sleep_over
from reverie.model import State, numbers, select_rows
from reverie.serve.sessions import Live
from reverie.sleep import Context, SleepConfig, read
from reverie.talk.heard import Heard
from reverie.talk.sleeper import Sleeper


def settle(sleeper: Sleeper, live: Live) -> bool:
    """Do for a session what can be done before anything is asked: sleep if its window is full, else read it again.

    Returns whether it slept.
    """
    if live.settled is not None:
        return False
    row = Row(sleeper, live.heard.memory, live.heard.awake)
    full = len(row.awake) == row.window_size
    if full:
        row.sleep()
    live.settled = Heard(row.memory, tuple(row.awake), live.heard.turns), row.after_awake()
    return full


class Row:
    """A text: its memory, the tokens awake since, the context after them, and those that are still to be heard."""

    def __init__(
        self, sleeper: Sleeper, memory: Memory, awake: Sequence[int] = (), context: Context | None = None
    ) -> None:
        self.sleeper, self.memory, self.awake = sleeper, memory, list(awake)
        self.context = context  # None: `awake` is to be read first
        self.pending = list[int]()

    @classmethod
    def of(cls, sleeper: Sleeper, live: Live) -> Row:
        """A row that goes on with a session."""
        heard, context = live.settled or (live.heard, None)
        return cls(sleeper, heard.memory, heard.awake, context)

    def branch(self) -> Row:
        """A row that goes on from here by itself."""
        return Row(self.sleeper, self.memory, self.awake, self.context)

    @property
    def window_size(self) -> int:
        return self.memory.config.window_size

    @property
    def overflows(self) -> bool:
        """True if a window has to be slept over before the newest of the tokens is heard."""
        return len(self.awake) + len(self.pending) > self.window_size

    def sleep(self) -> None:
        """Sleep over the first window of what is awake and to be heard."""
        L, heard = self.window_size, [*self.awake, *self.pending]
        window = torch.tensor([heard[:L]], device=self.sleeper.device)
        history = History() if self.memory.history is None else self.memory.history.copy()
        config = self.memory.config
        memory = sleep_over(self.sleeper.sleeping, window, config, memory=self.memory, history=history)
        if not all(bool(x.isfinite().all()) for x in memory.context.state.fast_weights if x is not None):
            raise UserError("the memory holds numbers that this model cannot sleep with: they overflow")
        self.memory = memory
        self.context, self.awake, self.pending = None, [], heard[L:]

    def hear(self) -> Float[Tensor, " vocab"]:
        """Hear all tokens that are pending, which fit into the window; the logits after them."""
        if self.context is None:
            self.context = self.after_awake()
        tokens = torch.tensor([self.pending], device=self.sleeper.device)
        logits, self.context = _read(self.sleeper, tokens, self.context, self.memory.config)
        self.awake, self.pending = [*self.awake, *self.pending], []
        return numbers(logits[0])

    def after_awake(self) -> Context:
        """The context after the tokens awake, read at once."""
        if not self.awake:
            return self.memory.context
        tokens = torch.tensor([self.awake], device=self.sleeper.device)
        return _read(self.sleeper, tokens, self.memory.context, self.memory.config)[1]


def cache_bytes(row: Row) -> int:
    """Bytes of the keys and values of all tokens awake."""
    entries = [] if row.context is None else row.context.state.cache
    found = [getattr(entry, name, None) for entry in entries for name in ("k", "v")]
    return sum(x.nbytes for x in found if isinstance(x, Tensor))


class Batch:
    """Rows at the same place of their windows, each with one token pending, and their contexts as one.

    Args:
        row: the first one, which has heard something since its sleep.
    """

    def __init__(self, row: Row) -> None:
        assert row.context is not None
        self.rows, self.context, self._config, self._sleeper = [row], row.context, row.memory.config, row.sleeper
        row.context = None

    @property
    def joins(self) -> bool:
        """False where the caches of earlier windows may differ in length."""
        return self._config.eviction == "hard"

    @property
    def full(self) -> bool:
        """True if the rows have to sleep before they hear another token."""
        return self.context.length == self._config.window_size

    def take(self, other: Batch) -> bool:
        """Take the rows of another batch in; False if their shapes do not allow it."""
        if not self.joins or not other.joins:
            return False
        joined = _joined(self.context, other.context)
        if joined is None:
            return False
        self.rows, self.context = [*self.rows, *other.rows], joined
        return True

    def keep(self, rows: Sequence[Row]) -> None:
        """Go on with some of the rows alone; without any, the batch is over."""
        places = [i for i, row in enumerate(self.rows) if row in rows]
        if places and len(places) < len(self.rows):
            self.context = select_rows(self.context, torch.tensor(places, device=self._sleeper.device))
        self.rows = [self.rows[i] for i in places]

    def hear(self) -> Float[Tensor, "rows vocab"]:
        """Hear the one token that is pending in each row."""
        tokens = torch.tensor([row.pending for row in self.rows], device=self._sleeper.device)
        logits, self.context = _read(self._sleeper, tokens, self.context, self._config)
        for row in self.rows:
            row.awake, row.pending = [*row.awake, *row.pending], []
        return logits


def _read(sleeper: Sleeper, tokens: Tensor, context: Context, config: SleepConfig) -> tuple[Tensor, Context]:
    """Logits [B, vocab] after tokens that fit into the window, and the context, without what only sleep would read."""
    awake = config.model_copy(update={"num_sleep_passes": 1, "tolerance": None})
    try:
        logits, context = read(sleeper.sleeping, tokens, context, awake, newest_only=True)
    except IndexError:
        raise UserError("there are token ids that this model does not know") from None
    return logits[:, -1], Context(context.state, context.state, length=context.length)


def _joined(a: Context, b: Context) -> Context | None:
    """Two contexts as one of a batch; None if they differ in more than their rows."""
    if a.length != b.length:
        return None
    parts, spec = tree_flatten(tuple(a.state))
    others, spec_of_others = tree_flatten(tuple(b.state))
    if spec != spec_of_others or not all(map(_fit, parts, others)):
        return None
    both = [torch.cat(pair) if isinstance(pair[0], Tensor) else pair[0] for pair in zip(parts, others, strict=True)]
    state = State(*tree_unflatten(both, spec))
    return Context(state, state, length=a.length)


def _fit(x: object, y: object) -> bool:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x.shape[1:] == y.shape[1:] and x.dtype == y.dtype and x.device == y.device
    return type(x) is type(y) and x == y
