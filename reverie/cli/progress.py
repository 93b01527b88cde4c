"""Progress of runs and of files on a terminal, or as plain lines where there is none."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from reverie.train.worker import Event

LINE_INTERVAL_S = 10.0


class _Display:
    """A bar for each name on a terminal; elsewhere lines, and not too many."""

    def __init__(self, console: Console, name: str = "") -> None:
        self._console, self._name = console, name
        self._begun: tuple[float, tuple[int, ...]] | None = None
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

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def _show(self, name: str, unit: str, done: int, total: int, numbers: str, seconds: float, new: int) -> None:
        """Show a state of `name`; the time left is that of the `new` units done in the last `seconds`."""
        if self._console.is_terminal:
            if name not in self._bars:
                self._bars[name] = self._progress.add_task(name, total=total, completed=done, numbers=numbers)
            self._progress.update(self._bars[name], completed=done, numbers=numbers)
            return
        now, left_s = time.monotonic(), int(seconds / max(new, 1) * (total - done))
        if done == total or now >= self._line_due.get(name, 0.0):
            self._line_due[name] = now + LINE_INTERVAL_S
            line = f"{name}  {unit} {done}/{total}  {numbers}  ETA {left_s // 60}:{left_s % 60:02d}"
            self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _since_first(self, *counts: int) -> tuple[float, list[int]]:
        """Seconds since the first call, and what has been added to each count."""
        now = time.monotonic()
        self._begun = self._begun or (now, counts)
        return max(now - self._begun[0], 1e-9), [x - y for x, y in zip(counts, self._begun[1], strict=True)]


class RunDisplay(_Display):
    """Shows loss, accuracy, tokens/s and the time left of every run that reports to it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._first: dict[str, Event] = {}

    def update(self, name: str, event: Event) -> None:
        """Show an event of a run, with speed since its first one; at that, over the run's whole past."""
        first = self._first.setdefault(name, event)
        begun = (first.step, first.tokens, first.wall_time_s) if event.step > first.step else (0, 0, 0.0)
        steps, tokens, seconds = event.step - begun[0], event.tokens - begun[1], event.wall_time_s - begun[2]
        accuracy = "" if event.accuracy is None else f"  acc {event.accuracy:.3f}"
        numbers = f"loss {event.loss:.3f}{accuracy}  {tokens / max(seconds, 1e-9):,.0f} tok/s"
        self._show(name, "step", event.step, event.steps, numbers, seconds, steps)


class PartDisplay(_Display):
    """Shows which part of a benchmark is being measured."""

    def update(self, done: int, total: int, what: str) -> None:
        """Before every part: those done, all of them, and what this one measures."""
        seconds, (new,) = self._since_first(done)
        self._show(self._name, "part", done, total, what, seconds, new)


class RowDisplay(_Display):
    """Shows rows/s and the time left of a file that is written row by row."""

    def __init__(self, console: Console, name: str, count: int) -> None:
        super().__init__(console, name)
        self._count = count

    def update(self, rows: int) -> None:
        """Show how many rows there are; the first call is of those found, and its time that of the workers' start."""
        seconds, (new,) = self._since_first(rows)
        if new or self._console.is_terminal:
            numbers = f"{new / seconds:,.1f} rows/s" if new else ""
            self._show(self._name, "row", rows, self._count, numbers, seconds, new)


class ReadDisplay(_Display):
    """Shows windows, tokens/s, bytes held and the time left of a text that is being read."""

    def update(self, windows: int, total: int, tokens: int, held: int | None = None) -> None:
        """Before the first window, and after every one of them. The bar ends with the last, for text comes next."""
        seconds, (new, new_tokens) = self._since_first(windows, tokens)
        if new or (total and self._console.is_terminal):
            size = "" if held is None else f"  {decimal(held)}"
            numbers = f"{new_tokens / seconds:,.0f} tok/s{size}" if new else ""
            self._show(self._name, "window", windows, total, numbers, seconds, new)
        if windows == total:
            self._progress.stop()
