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
from typing import Any, Protocol, TypeVar

import torch

from reverie.memory.memory import Memory
from reverie.serve.job import Failed, Job
from reverie.serve.limits import Limits
from reverie.serve.refusal import Refusal
from reverie.serve.row import Row, cache_bytes, settle
from reverie.serve.sessions import Live
from reverie.serve.voices import Counts, Voices
from reverie.talk.sleeper import Sleeper

Value = TypeVar("Value")
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


class Engine:
    """Starts with `start`, ends with `stop`. All other methods may be called from any thread."""

    def __init__(self, sleeper: Sleeper, limits: Limits) -> None:
        self.sleeper, self.limits, self.counts, self.vocab_size = sleeper, limits, Counts(), 0
        self.cache_bytes = 0  # that a token takes in the caches of the blocks of attention
        self._news = threading.Condition()
        self._calls = deque[tuple[Callable[[], Any], Future[Any]]]()
        self._waiting = deque[Job]()
        self._running = set[Job]()
        self._voices = Voices(sleeper, limits, self.counts, self._fail, self._over)
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
            self.cache_bytes = cache_bytes(row)
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
            if len(self._waiting) + len(self._running) >= self.limits.waiting + self.limits.running:
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
            self._calls.append((function, future))
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
        try:
            self._turns()
        finally:  # if it fails too, nobody must wait for ever
            with self._news:
                self._stopping = True
            self._end_all()

    def _turns(self) -> None:
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
            self._voices.step()
            quiet = not self._busy
            if self._idle_work and (quiet or time.monotonic() - self._background_s > _PATIENCE_S):
                self._do_background(quiet)

    @property
    def _busy(self) -> bool:
        return bool(self._waiting or self._voices)

    @property
    def _idle_work(self) -> bool:
        return bool(self._settling or self._background)

    def _over(self, job: Job) -> None:
        self._running.discard(job)
        self._job_s += 0.1 * (time.monotonic() - job.begun - self._job_s)

    def _admit(self, job: Job) -> None:
        self._running.add(job)
        self._voices.add(job)

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
        self._voices.forget_cancelled()

    def _do_background(self, quiet: bool) -> None:
        self._background_s = time.monotonic()
        try:
            if quiet and self._settling:
                live = self._settling.popleft()
                self.counts.time(lambda: settle(self.sleeper, live))
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


def _answer(function: Callable[[], Any], future: Future[Any]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)
