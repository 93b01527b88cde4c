"""SIGTERM and Ctrl-C: training finishes its step and saves before it ends; whatever else is going ends at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

TIME_IS_UP = signal.SIGALRM
"""What stops a training that was given a number of seconds. Nobody sends it: the training looks at a clock."""


class Stopped(KeyboardInterrupt):
    """Training has ended because it was asked to, or its time was up: `step` steps are done and saved.

    What lets Ctrl-C through lets this through, so no `except Exception` takes it for a failed run.
    """

    def __init__(self, received: signal.Signals, step: int, steps: int) -> None:
        self.signal, self.step = received, step
        why = {signal.SIGINT: "Ctrl-C", TIME_IS_UP: "time is up"}.get(received, received.name)
        super().__init__(f"stopped after step {step} of {steps} ({why}), saved")


class Terminated(KeyboardInterrupt):
    """SIGTERM came where there is no step to finish."""


@dataclass
class StopRequest:
    """Which signal has asked training to stop, if one has."""

    requested: signal.Signals | None = None


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """SIGTERM and SIGINT do nothing meanwhile but note the request; Ctrl-C for the second time interrupts as usual.

    In a thread that is not the main one nothing is ever requested, for signals do not come there.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        request.requested = request.requested or signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    with _handling(note, signal.SIGTERM, signal.SIGINT) as before:
        yield request


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM raises `Terminated`, as Ctrl-C raises KeyboardInterrupt: nothing stays half-written, no child is left."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Terminated("terminated")

    with _handling(interrupt, signal.SIGTERM):
        yield


def exit_code(interruption: KeyboardInterrupt) -> int:
    """What a shell calls a process that this signal has ended: 130 after Ctrl-C, 143 after SIGTERM; 0 if time is up."""
    if isinstance(interruption, Stopped):
        return 0 if interruption.signal == TIME_IS_UP else 128 + interruption.signal
    return 128 + (signal.SIGTERM if isinstance(interruption, Terminated) else signal.SIGINT)


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None], *numbers: int) -> Iterator[dict[int, Any]]:
    """With that handler for signals, but for those that are ignored, as Ctrl-C is in background jobs of a script.

    Yields the handlers from before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    known = {number: signal.getsignal(number) for number in numbers}
    before = {number: old for number, old in known.items() if old not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield before
    finally:
        for number, old in before.items():
            signal.signal(number, old)
