"""`Queues`: one request at a time for each of many things, the others behind it in the order they came."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from filelock import FileLock, Timeout

from reverie.serve.limits import Limits
from reverie.serve.refusal import Refusal

_LOOK_S = 0.02  # between two looks at what another process holds


class Queues:
    """For one event loop; other processes are kept out by lock files, in no order."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._turns = dict[Path, list[asyncio.Lock]]()  # the lock of each, once for all who have it or wait for it

    @contextlib.asynccontextmanager
    async def turn(self, path: Path, what: str) -> AsyncIterator[None]:
        """Hold the lock file `path`; `what` it is of is said in errors.

        Raises:
            Refusal: too many wait, or it takes as long as an answer may at most.
        """
        those = self._turns.setdefault(path, [asyncio.Lock()])
        if len(those) > self._limits.waiting + 1:
            raise Refusal(429, f"too many requests wait for this {what}", code="queue_full", retry_after_s=1)
        those.append(those[0])
        try:
            async with contextlib.AsyncExitStack() as held:
                try:
                    async with asyncio.timeout(self._limits.answer_s):
                        await held.enter_async_context(those[0])
                        held.push(await _locked(path))
                except TimeoutError:
                    sentence = f"this {what} was busy for {self._limits.answer_s:g} s"
                    raise Refusal(408, sentence, code="timeout") from None
                yield
        finally:
            those.pop()
            if len(those) == 1:
                del self._turns[path]


async def _locked(path: Path) -> FileLock:
    lock = FileLock(path, mode=0o600, thread_local=False)
    while True:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            await asyncio.sleep(_LOOK_S)
        else:
            return lock
