"""`Voices`: the answers that are being written, and the step that each takes in a turn of the engine."""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from reverie.errors import UserError
from reverie.model import numbers
from reverie.serve.job import Job, Voice, start
from reverie.serve.limits import Limits
from reverie.serve.row import Batch, Row, settle
from reverie.talk.sleeper import Sleeper

_NEAR = 4  # tokens, that one waits for
_log = logging.getLogger("reverie.serve")


@dataclass
class Counts:
    """What was done so far."""

    tokens_heard: int = 0
    tokens_written: int = 0
    sleeps: int = 0
    sleep_s: float = 0.0
    batched: int = 0  # tokens that were written in a call with others
    refused: int = 0

    def time(self, sleep: Callable[[], bool | None]) -> None:
        """Do what sleeps over a window, unless it returns False."""
        begun = time.monotonic()
        if sleep() is not False:
            self.sleeps += 1
            self.sleep_s += time.monotonic() - begun


class Voices:
    """For the engine's thread alone.

    Args:
        fail: called with a job that an error ends, and the error; it marks the job as cancelled.
        over: called with a job that has all its answers.
    """

    def __init__(
        self,
        sleeper: Sleeper,
        limits: Limits,
        counts: Counts,
        fail: Callable[[Job, Exception], None],
        over: Callable[[Job], None],
    ) -> None:
        self._sleeper, self._limits, self._counts, self._fail, self._over = sleeper, limits, counts, fail, over
        self._slow = deque[Voice]()  # who hear, or sleep, or are at their end
        self._batches = list[Batch]()
        self._voices = dict[Row, Voice]()  # of the rows in batches

    def __len__(self) -> int:
        return len(self._slow) + len(self._voices)

    def add(self, job: Job) -> None:
        """Begin with a job."""
        job.left = job.n if job.sampling.max_tokens != 0 else 1
        self._slow.append(start(self._sleeper, job))

    def step(self) -> None:
        """What is new for all who have less than a window to hear, a window for one who has more, a token for all."""
        try:
            self._listen()
            self._write()
        except Exception as error:  # such as too little memory for a batch: whose fault it is nobody knows
            self._guarded([*self._slow, *self._voices.values()], functools.partial(_raise, error))

    def forget_cancelled(self) -> None:
        self._slow = deque(voice for voice in self._slow if not voice.job.cancelled)
        self._voices = {row: voice for row, voice in self._voices.items() if not voice.job.cancelled}
        for batch in self._batches:
            batch.keep([row for row in batch.rows if row in self._voices])
        self._batches = [batch for batch in self._batches if batch.rows]

    def _listen(self) -> None:
        """Let all hear who have less than a window left, so that they write together, and one sleep."""
        slept, later, now = False, list[Voice](), [*self._slow]
        self._slow.clear()  # it gets those who go on
        for voice in now:
            sleeps = voice.row.overflows
            if sleeps and slept:
                later.append(voice)
            elif not voice.job.cancelled:
                slept = slept or sleeps
                self._guarded([voice], functools.partial(self._hear, voice))
        self._slow.extendleft(reversed([voice for voice in later if not voice.job.cancelled]))

    def _hear(self, voice: Voice) -> None:
        """A window of what one voice has to hear, or to sleep over; or the end of it."""
        row, live = voice.row, voice.job.live
        voice.job.stand(row, voice.index)
        if live.settled is None and voice.index is None and row.awake:
            full = len(row.awake) == row.window_size
            if full or not row.overflows:
                self._counts.time(lambda: settle(self._sleeper, live))
                fresh = start(self._sleeper, voice.job)
                return self._slow.append(fresh)
        if row.overflows:
            self._counts.time(row.sleep)
            return self._slow.append(voice)
        if voice.closing or not voice.writes:
            return self._end(voice)
        self._counts.tokens_heard += len(row.pending)
        logits = row.hear()
        for answer in voice.answers(self._limits) if voice.index is None else [voice]:
            answer.write(logits)
            self._go_on(answer)

    def _go_on(self, voice: Voice) -> None:
        """Put a voice where its next step is done, after it has chosen a token."""
        self._counts.tokens_written += 1
        if voice.closing or voice.row.overflows or voice.row.context is None:
            self._slow.append(voice)
        else:
            self._voices[voice.row] = voice
            self._batches.append(Batch(voice.row))

    def _write(self) -> None:
        """One more token for every row that writes, those at one place of their windows together.

        Who is a few tokens ahead of others waits for them: together they are as fast as one alone.
        """
        batches = list[Batch]()
        for batch in self._batches:
            if batch.full:
                self._slow.extend(self._voices.pop(row) for row in batch.rows)
            elif not any(other.take(batch) for other in batches):
                batches.append(batch)
        self._batches = batches
        behind = {batch.context.length for batch in batches}
        for batch in batches:
            if batch.joins and not behind.isdisjoint(range(batch.context.length - _NEAR, batch.context.length)):
                continue
            voices = [self._voices[row] for row in batch.rows]  # none if their job has failed in another batch
            if voices:
                self._guarded(voices, lambda batch=batch, voices=voices: self._write_batch(batch, voices))
        self._batches = [batch for batch in self._batches if batch.rows]

    def _write_batch(self, batch: Batch, voices: list[Voice]) -> None:
        logits = batch.hear()
        self._counts.batched += len(voices) if len(voices) > 1 else 0
        staying = list[Row]()
        for voice, own in zip(voices, logits, strict=True):
            row = voice.row
            self._guarded([voice], lambda voice=voice, own=own: voice.write(numbers(own)))
            self._counts.tokens_written += 1
            if voice.closing and row in self._voices:
                del self._voices[row]
                self._slow.append(voice)
            else:
                staying.append(row)
        batch.keep([row for row in staying if row in self._voices])

    def _end(self, voice: Voice) -> None:
        voice.end()
        voice.job.left -= 1
        if voice.job.left == 0:
            self._over(voice.job)

    def _guarded(self, voices: list[Voice], step: Callable[[], None]) -> None:
        """Take a step; an error ends the jobs of these voices, and no others."""
        try:
            step()
        except Exception as error:
            if not isinstance(error, UserError):
                _log.exception("a request failed")
            for job in {voice.job for voice in voices}:
                self._fail(job, error)
            self.forget_cancelled()


def _raise(error: Exception) -> None:
    raise error
