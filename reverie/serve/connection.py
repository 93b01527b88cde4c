"""`Connection`: HTTP/1.1 for clients who may be slow, as uvicorn speaks it, and with an end to their time."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from reverie.serve.limits import Limits


class Connection(H11Protocol):
    """Closes when the head of a request does not come, and when an answer is not taken."""

    patience_s: ClassVar[float] = Limits.body_s
    _coming: asyncio.TimerHandle | None = None  # runs out when the head of a request should have come
    _taking: asyncio.TimerHandle | None = None  # when the client should have taken some of what was sent

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking = self.loop.call_later(self.patience_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taking = _cancelled(self._taking)

    def connection_lost(self, exc: Exception | None) -> None:
        self._coming, self._taking = _cancelled(self._coming), _cancelled(self._taking)
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Wait for the head of a request while none is being answered; bytes that come don't make it longer."""
        cycle: Any = self.cycle  # None before the first request
        if cycle is not None and not cycle.response_complete:
            self._coming = _cancelled(self._coming)
        elif self._coming is None and not self.transport.is_closing():
            self._coming = self.loop.call_later(self.patience_s, self.transport.abort)


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
