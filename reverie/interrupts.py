"""SIGTERM and Ctrl-C: training finishes its step and saves before it ends; everything else ends at once."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

TIME_IS_UP = signal.SIGALRM
"""The "signal" that stops a training whose time limit is reached. Nobody sends it: training looks at a clock."""


class Stopped(KeyboardInterrupt):
    """Training was stopped by a signal or its time limit, after `step` steps, which are saved.

    A KeyboardInterrupt, so that no `except Exception` takes it for a failed run.
    """

    def __init__(self, received: signal.Signals, step: int, steps: int) -> None:
        self.signal, self.step = received, step
        why = {signal.SIGINT: "Ctrl-C", TIME_IS_UP: "time is up"}.get(received, received.name)
        super().__init__(f"stopped after step {step} of {steps} ({why}), saved")


class Terminated(KeyboardInterrupt):
    """SIGTERM was received outside of a training step."""


@dataclass
class StopRequest:
    """The first signal that asked training to stop; None if there was none."""

    requested: signal.Signals | None = None


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Make SIGTERM and SIGINT set a flag instead of ending the process; a second Ctrl-C interrupts as usual.

    In a thread other than the main one nothing is ever requested: Python handles signals in the main thread.
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
    """Make SIGTERM raise `Terminated`, as Ctrl-C raises KeyboardInterrupt, so that `finally` blocks run."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Terminated("terminated")

    with _handling(interrupt, signal.SIGTERM):
        yield


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the process at once, inside C++ too, for which a handler in Python would wait."""
    with _handling(signal.SIG_DFL, signal.SIGTERM, signal.SIGINT):
        yield


def exit_code(interruption: KeyboardInterrupt) -> int:
    """Exit code for an interruption, as in shells: 130 after Ctrl-C, 143 after SIGTERM; 0 after the time limit."""
    if isinstance(interruption, Stopped):
        return 0 if interruption.signal == TIME_IS_UP else 128 + interruption.signal
    return 128 + (signal.SIGTERM if isinstance(interruption, Terminated) else signal.SIGINT)


@contextlib.contextmanager
def _handling(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers, *numbers: int
) -> Iterator[dict[int, Any]]:
    """Install a handler for signals and yield the earlier ones by number, which are put back at the end.

    Signals that are ignored stay so, as Ctrl-C does in background jobs of a script.
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
