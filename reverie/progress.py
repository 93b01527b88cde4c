"""Progress of one or several runs on a terminal, or as plain lines where there is none."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from reverie.train.worker import Event

LINE_INTERVAL_S = 10.0


class RunDisplay:
    """Shows loss, accuracy, tokens/s and the time left of every run that reports to it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: dict[str, TaskID] = {}
        self._first: dict[str, Event] = {}
        self._line_due: dict[str, float] = {}
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> RunDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, name: str, event: Event) -> None:
        first = self._first.setdefault(name, event)
        # At the first event the run's whole past is all there is to go by.
        begun = (first.step, first.tokens, first.wall_time_s) if event.step > first.step else (0, 0, 0.0)
        steps, tokens, seconds = event.step - begun[0], event.tokens - begun[1], event.wall_time_s - begun[2]
        rate = tokens / max(seconds, 1e-9)
        accuracy = "" if event.accuracy is None else f"  acc {event.accuracy:.3f}"
        numbers = f"loss {event.loss:.3f}{accuracy}  {rate:,.0f} tok/s"
        if not self._console.is_terminal:
            self._print_line(name, event, numbers, seconds / max(steps, 1))
            return
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=event.steps, completed=event.step, numbers=numbers)
        self._progress.update(self._bars[name], completed=event.step, numbers=numbers)

    def _print_line(self, name: str, event: Event, numbers: str, seconds_a_step: float) -> None:
        now = time.monotonic()
        if event.step < event.steps and now < self._line_due.get(name, 0.0):
            return
        self._line_due[name] = now + LINE_INTERVAL_S
        left = int(seconds_a_step * (event.steps - event.step))
        line = f"{name}  step {event.step}/{event.steps}  {numbers}  ETA {left // 60}:{left % 60:02d}"
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)
