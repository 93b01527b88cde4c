"""`Job`: one request at the engine, and what it hears of it; `Voice`: one of its answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from reverie.serve.limits import Limits
from reverie.serve.row import Row
from reverie.serve.sessions import Live
from reverie.serve.writer import Piece, Reason, Sampling, Writer
from reverie.talk.heard import Heard
from reverie.talk.sleeper import Sleeper


@dataclass(frozen=True)
class Wrote:
    """A piece of an answer; or, for who watches, what is awake by now, and an empty one."""

    index: int
    piece: Piece
    stands: Heard | None = None


@dataclass(frozen=True)
class Ended:
    """An answer is at its end."""

    index: int
    reason: Reason
    text: str
    tokens: int
    heard: Heard  # after it
    said: tuple[int, ...]  # the tokens of the answer that count as heard


@dataclass(frozen=True)
class Failed:
    """The request is at its end without an answer."""

    error: Exception


Event = Wrote | Ended | Failed


@dataclass(eq=False)
class Job:
    """Tokens to hear after a session, and answers to write.

    Args:
        turns: of the session after it.
        emit: called with every event, in the engine's thread.
        watched: somebody wants to see the window fill, and every sleep.
    """

    live: Live
    tokens: Sequence[int]
    turns: int
    sampling: Sampling
    n: int
    emit: Callable[[Event], None]
    watched: bool = False
    cancelled: bool = False
    begun: float = field(default_factory=time.monotonic)
    left: int = 0  # answers that are being written

    def stand(self, row: Row, index: int | None = None) -> None:
        """Tell who watches how full the window is."""
        if self.watched:
            awake = (*row.awake, *row.pending)[: row.window_size]
            self.emit(Wrote(index or 0, Piece(""), Heard(row.memory, awake, self.turns)))


class Voice:
    """One answer of a job, or at first all of them, while the question is heard."""

    def __init__(self, job: Job, row: Row, index: int | None = None) -> None:
        self.job, self.row, self.index = job, row, index
        self.writer: Writer | None = None
        self.closing = False  # only sleep may be left to do
        self._before = row

    @property
    def writes(self) -> bool:
        """True if something is to be answered."""
        return self.job.sampling.max_tokens != 0

    def answers(self, limits: Limits) -> list[Voice]:
        """A voice for each answer, after the question was heard."""
        return [self._answer(i, limits) for i in range(self.job.n)]

    def _answer(self, index: int, limits: Limits) -> Voice:
        voice = Voice(self.job, self.row.branch(), index)
        voice._before = voice.row.branch()
        sleeper = self.row.sleeper
        sampling = replace(self.job.sampling, seed=(self.job.sampling.seed + index) % 2**63)
        voice.writer = Writer(sleeper.language, sampling, limits.answer_tokens, sleeper.device)
        return voice

    def write(self, logits: Float[Tensor, " vocab"]) -> None:
        """Choose the next token, which is pending then; or close the answer."""
        writer, index = self.writer, self.index
        assert writer is not None
        assert index is not None
        piece = writer.take(logits)
        if piece.text or piece.tokens:
            self.job.emit(Wrote(index, piece))
        if writer.finished is None:
            self.row.pending = writer.said[-1:]
            self.job.stand(self.row, index)
        else:
            self._close(writer)

    def end(self) -> None:
        """Tell of the end, when nothing is left to sleep over."""
        row, writer = self.row, self.writer
        heard = Heard(row.memory, (*row.awake, *row.pending), self.job.turns)
        if writer is None:
            self.job.emit(Ended(0, "stop", "", 0, heard, ()))
        else:
            assert self.index is not None
            reason = writer.finished or "stop"
            kept = tuple(writer.kept())
            self.job.emit(Ended(self.index, reason, writer.text, len(writer.said), heard, kept))

    def _close(self, writer: Writer) -> None:
        said, kept = len(writer.said), writer.kept()
        if len(kept) >= said - 1:  # all but the newest were heard
            self.row.pending = kept[said - 1 :]
        else:
            self.row = self._before
            self.row.pending = kept
        self.closing = True


def start(sleeper: Sleeper, job: Job) -> Voice:
    """A voice that has yet to hear the question."""
    row = Row.of(sleeper, job.live)
    row.pending = list(job.tokens)
    return Voice(job, row)
