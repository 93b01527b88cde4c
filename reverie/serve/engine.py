"""`Engine`: the thread that owns the model, and what it does next.

A turn of it is what is new for all who have less than a window to hear, a window for one of those who have more, and a
token for all who write; so nobody waits for another's book. What is done in the background gets turns when nobody else
needs them, and one a second when somebody does.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from reverie.errors import UserError
from reverie.memory.memory import Memory
from reverie.model import numbers
from reverie.serve.job import Failed, Job, Voice, start
from reverie.serve.limits import Limits
from reverie.serve.refusal import Refusal
from reverie.serve.row import Batch, Row, settle
from reverie.serve.sessions import Live
from reverie.talk.sleeper import Sleeper

Value = TypeVar("Value")
_NEAR = 4  # tokens, that one waits for
_PATIENCE_S = 1.0  # that the background waits while others are served
_log = logging.getLogger("reverie.serve")


class Background(Protocol):
    """Something that is done bit by bit while nobody waits."""

    def step(self) -> bool:
        """Do the next bit; True if it was the last."""
        ...

    def stop(self) -> None:
        """The server ends before it is done."""
        ...


@dataclass
class Counts:
    """What was done so far."""

    tokens_heard: int = 0
    tokens_written: int = 0
    sleeps: int = 0
    sleep_s: float = 0.0
    batched: int = 0  # tokens that were written in a call with others
    refused: int = 0


class Engine:
    """Starts with `start`, ends with `stop`. All other methods may be called from any thread."""

    def __init__(self, sleeper: Sleeper, limits: Limits) -> None:
        self.sleeper, self.limits, self.counts, self.vocab_size = sleeper, limits, Counts(), 0
        self._news = threading.Condition()
        self._calls = deque[tuple[Callable[[], object], Future[object]]]()
        self._waiting = deque[Job]()
        self._running = set[Job]()
        self._slow = deque[Voice]()  # who hear, or sleep, or are at their end
        self._batches = list[Batch]()
        self._voices = dict[Row, Voice]()  # of the rows in batches
        self._settling = deque[Live](maxlen=max(limits.live, 1))
        self._background = deque[Background]()
        self._background_s = 0.0  # when it had a turn
        self._job_s = 1.0  # that a job took, on average
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        with torch.no_grad():
            row = Row(self.sleeper, Memory.empty(self.sleeper))
            row.pending = [0]
            self.vocab_size = len(row.hear())
        self._thread.start()

    def stop(self) -> None:
        """End after this turn; all who wait are told."""
        with self._news:
            self._stopping = True
            self._news.notify()
        self._thread.join()

    def submit(self, job: Job) -> None:
        """Queue a job. Raises Refusal where too many wait."""
        with self._news:
            if self._stopping:
                raise Refusal(503, "the server is about to end", code="stopping")
            if len(self._waiting) >= self.limits.waiting:
                self.counts.refused += 1
                wait_s = min(60, max(1, math.ceil(len(self._waiting) / self.limits.running * self._job_s)))
                raise Refusal(429, "too many requests wait: try again", code="queue_full", retry_after_s=wait_s)
            self._waiting.append(job)
            self._news.notify()

    def cancel(self, job: Job) -> None:
        """Let go of a job; what it has done is forgotten. Nothing happens if it is over."""
        with self._news:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
            self._news.notify()

    def call(self, function: Callable[[], Value]) -> Future[Value]:
        """Call a short function between two turns, while the model is at rest."""
        future = Future[Value]()
        with self._news:
            if self._stopping:
                raise Refusal(503, "the server is about to end", code="stopping")
            self._calls.append((function, future))  # type: ignore[arg-type]
            self._news.notify()
        return future

    def settle(self, live: Live) -> None:
        """Settle a session when there is time, so that the next request finds it done."""
        with self._news:
            self._settling.append(live)
            self._news.notify()

    def background(self, task: Background) -> None:
        with self._news:
            self._background.append(task)
            self._news.notify()

    def _run(self) -> None:
        torch.set_grad_enabled(False)  # of this thread
        while True:
            with self._news:
                while not (self._stopping or self._calls or self._busy or self._idle_work):
                    self._news.wait()
                if self._stopping:
                    break
                calls = [*self._calls]
                self._calls.clear()
                self._let_go()
                while self._waiting and len(self._running) < self.limits.running:
                    self._admit(self._waiting.popleft())
            for function, future in calls:
                _answer(function, future)
            try:
                self._turn()
            except Exception as error:  # such as too little memory for a batch: whose fault it is nobody knows
                _log.exception("the engine failed")
                self._guarded([*self._slow, *self._voices.values()], functools.partial(_raise, error))
        self._end_all()

    @property
    def _busy(self) -> bool:
        return bool(self._waiting or self._slow or self._batches)

    @property
    def _idle_work(self) -> bool:
        return bool(self._settling or self._background)

    def _turn(self) -> None:
        self._listen()
        self._write()
        quiet = not self._busy
        if self._idle_work and (quiet or time.monotonic() - self._background_s > _PATIENCE_S):
            self._do_background(quiet)

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
        if live.settled is None and voice.index is None and row.awake:
            full = len(row.awake) == row.window_size
            if full or not row.overflows:
                self._count_sleep(lambda: settle(self.sleeper, live))
                fresh = start(self.sleeper, voice.job)
                return self._slow.append(fresh)
        if row.overflows:
            self._count_sleep(row.sleep)
            return self._slow.append(voice)
        if voice.closing or not voice.writes:
            return self._end(voice)
        self.counts.tokens_heard += len(row.pending)
        logits = row.hear()
        for answer in voice.answers(self.limits) if voice.index is None else [voice]:
            answer.write(logits)
            self._go_on(answer)

    def _count_sleep(self, sleep: Callable[[], bool | None]) -> None:
        """Do what sleeps over a window, unless it returns False."""
        begun = time.monotonic()
        if sleep() is not False:
            self.counts.sleeps += 1
            self.counts.sleep_s += time.monotonic() - begun

    def _go_on(self, voice: Voice) -> None:
        """Put a voice where its next step is done, after it has chosen a token."""
        self.counts.tokens_written += 1
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
        self.counts.batched += len(voices) if len(voices) > 1 else 0
        staying = list[Row]()
        for voice, own in zip(voices, logits, strict=True):
            row = voice.row
            self._guarded([voice], lambda voice=voice, own=own: voice.write(numbers(own)))
            self.counts.tokens_written += 1
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

    def _over(self, job: Job) -> None:
        self._running.discard(job)
        self._job_s += 0.1 * (time.monotonic() - job.begun - self._job_s)

    def _admit(self, job: Job) -> None:
        self._running.add(job)
        job.left = job.n if job.sampling.max_tokens != 0 else 1
        self._slow.append(start(self.sleeper, job))

    def _guarded(self, voices: list[Voice], step: Callable[[], None]) -> None:
        """Take a step; an error ends the jobs of these voices, and no others."""
        try:
            step()
        except Exception as error:
            if not isinstance(error, UserError):
                _log.exception("a request failed")
            for job in {voice.job for voice in voices}:
                self._fail(job, error)
            with self._news:
                self._forget_cancelled()

    def _fail(self, job: Job, error: Exception) -> None:
        job.cancelled = True
        self._over(job)
        job.emit(Failed(error))

    def _let_go(self) -> None:
        """Forget jobs that were cancelled, and those that take too long."""
        late = time.monotonic() - self.limits.answer_s
        jobs = [*self._running, *self._waiting]
        for job in jobs:
            if job.begun < late and not job.cancelled:
                what = f"the answer took longer than {self.limits.answer_s:g} s"
                self._fail(job, Refusal(408, what, code="timeout"))
        if any(job.cancelled for job in jobs):
            self._forget_cancelled()

    def _forget_cancelled(self) -> None:
        self._waiting = deque(job for job in self._waiting if not job.cancelled)
        self._running = {job for job in self._running if not job.cancelled}
        self._slow = deque(voice for voice in self._slow if not voice.job.cancelled)
        self._voices = {row: voice for row, voice in self._voices.items() if not voice.job.cancelled}
        for batch in self._batches:
            batch.keep([row for row in batch.rows if row in self._voices])
        self._batches = [batch for batch in self._batches if batch.rows]

    def _do_background(self, quiet: bool) -> None:
        self._background_s = time.monotonic()
        try:
            if quiet and self._settling:
                live = self._settling.popleft()
                self._count_sleep(lambda: settle(self.sleeper, live))
            elif self._background:
                task = self._background.popleft()
                if not task.step():
                    self._background.append(task)
        except Exception:
            _log.exception("what is done in the background failed")

    def _end_all(self) -> None:
        for job in [*self._running, *self._waiting]:
            job.emit(Failed(Refusal(503, "the server is about to end", code="stopping")))
        for _, future in self._calls:
            _answer(functools.partial(_raise, Refusal(503, "the server is about to end", code="stopping")), future)
        for task in self._background:
            task.stop()


def _raise(error: Exception) -> None:
    raise error


def _answer(function: Callable[[], object], future: Future[object]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)
