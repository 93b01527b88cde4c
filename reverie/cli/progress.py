"""Progress of runs and of files on a terminal, or as plain lines where there is none."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from reverie.train.worker import Event

LINE_INTERVAL_S = 10.0


class _Display:
    """A bar for each name on a terminal; elsewhere lines, and not too many."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: dict[str, TaskID] = {}
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

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def _show(self, name: str, unit: str, done: int, total: int, numbers: str, left_s: float) -> None:
        if not self._console.is_terminal:
            self._print_line(name, unit, done, total, numbers, int(left_s))
            return
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=total, completed=done, numbers=numbers)
        self._progress.update(self._bars[name], completed=done, numbers=numbers)

    def _print_line(self, name: str, unit: str, done: int, total: int, numbers: str, left_s: int) -> None:
        now = time.monotonic()
        if done < total and now < self._line_due.get(name, 0.0):
            return
        self._line_due[name] = now + LINE_INTERVAL_S
        line = f"{name}  {unit} {done}/{total}  {numbers}  ETA {left_s // 60}:{left_s % 60:02d}"
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)


class RunDisplay(_Display):
    """Shows loss, accuracy, tokens/s and the time left of every run that reports to it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._first: dict[str, Event] = {}

    def update(self, name: str, event: Event) -> None:
        first = self._first.setdefault(name, event)
        # At the first event the run's whole past is all there is to go by.
        begun = (first.step, first.tokens, first.wall_time_s) if event.step > first.step else (0, 0, 0.0)
        steps, tokens, seconds = event.step - begun[0], event.tokens - begun[1], event.wall_time_s - begun[2]
        rate = tokens / max(seconds, 1e-9)
        accuracy = "" if event.accuracy is None else f"  acc {event.accuracy:.3f}"
        numbers = f"loss {event.loss:.3f}{accuracy}  {rate:,.0f} tok/s"
        left_s = seconds / max(steps, 1) * (event.steps - event.step)
        self._show(name, "step", event.step, event.steps, numbers, left_s)


class PartDisplay(_Display):
    """Shows which part of a benchmark is being measured."""

    def __init__(self, console: Console, name: str) -> None:
        super().__init__(console)
        self._name, self._begun = name, time.monotonic()

    def update(self, done: int, total: int, what: str) -> None:
        """Before every part: those done, all of them, and what this one measures."""
        left_s = (time.monotonic() - self._begun) / max(done, 1) * (total - done)
        self._show(self._name, "part", done, total, what, left_s)


class RowDisplay(_Display):
    """Shows rows/s and the time left of a file that is written row by row."""

    def __init__(self, console: Console, name: str, count: int) -> None:
        super().__init__(console)
        self._name, self._count = name, count
        self._begun: tuple[int, float] | None = None  # rows and time of the first update

    def update(self, rows: int) -> None:
        """Of the rows that are there; at first, of those found. Speed counts the workers' start too."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = rows, now
        found, found_at = self._begun
        if rows > found:
            rate = (rows - found) / max(now - found_at, 1e-9)
            self._show(self._name, "row", rows, self._count, f"{rate:,.1f} rows/s", (self._count - rows) / rate)
        elif self._console.is_terminal:  # a bar while the workers start
            self._show(self._name, "row", rows, self._count, "", 0.0)


class ReadDisplay(_Display):
    """Shows windows, tokens/s, bytes held and the time left of a text that is being read."""

    def __init__(self, console: Console, name: str) -> None:
        super().__init__(console)
        self._name = name
        self._begun: tuple[float, int, int] | None = None  # time, windows and tokens of the first update

    def update(self, windows: int, total: int, tokens: int, held: int | None = None) -> None:
        """Before the first window, and after every one of them. The bar ends with the last, for text comes next."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = now, windows, tokens
        begun, first, skipped = self._begun
        if windows > first:
            seconds = max(now - begun, 1e-9)
            left_s = seconds / (windows - first) * (total - windows)
            numbers = f"{(tokens - skipped) / seconds:,.0f} tok/s" + ("" if held is None else f"  {decimal(held)}")
            self._show(self._name, "window", windows, total, numbers, left_s)
        elif total and self._console.is_terminal:
            self._show(self._name, "window", windows, total, "", 0.0)
        if windows == total:
            self._progress.stop()
