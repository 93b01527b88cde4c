"""`Idle`: sleep over the unfinished windows of responses that nobody has gone on from for a while."""

from __future__ import annotations

import asyncio
import contextlib

from reverie.serve.engine import Engine
from reverie.serve.refusal import Refusal
from reverie.serve.responses import Responses
from reverie.serve.row import Row
from reverie.talk.heard import Heard


class Idle:
    """For the thread of the event loop alone; the engine sleeps in the background.

    Args:
        after_s: seconds until a response is idle; None: none ever is.
    """

    def __init__(self, engine: Engine, after_s: float | None) -> None:
        self._engine, self._after_s = engine, after_s
        self._timers = dict[str, asyncio.TimerHandle]()

    def rest(self, responses: Responses, id: str) -> None:
        """Nobody has gone on from this response yet."""
        if self._after_s is not None:
            loop = asyncio.get_running_loop()
            self._timers[id] = loop.call_later(self._after_s, self._begin, responses, id)

    def stir(self, id: str) -> None:
        """Somebody goes on from it."""
        if (timer := self._timers.pop(id, None)) is not None:
            timer.cancel()

    def _begin(self, responses: Responses, id: str) -> None:
        del self._timers[id]
        self._engine.background(_Nap(self._engine, responses, id))


class _Nap:
    """Sleep over what is awake in one response."""

    def __init__(self, engine: Engine, responses: Responses, id: str) -> None:
        self._engine, self._responses, self._id = engine, responses, id

    def step(self) -> bool:
        with contextlib.suppress(Refusal):  # it was deleted, or the disk is full: it stays as it is
            live = self._responses.get(self._id)
            heard, _ = live.settled or (live.heard, None)
            if heard.awake:
                row = Row(self._engine.sleeper, heard.memory, heard.awake)
                self._engine.counts.time(row.sleep)
                self._responses.put_asleep(self._id, Heard(row.memory, (), heard.turns))
        return True

    def stop(self) -> None:
        """It stays as it is."""
