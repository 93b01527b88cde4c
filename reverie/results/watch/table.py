"""The table of what was watched, for the terminal."""

from __future__ import annotations

from statistics import fmean

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from reverie.errors import plain
from reverie.memory.history import Window
from reverie.results.watch.collect import Watch

_MOST_WINDOWS = 24  # of a longer text the first and the last
_MOST_PASSES = 5  # with a column each: with more, 80 characters are not enough


def watch_table(watch: Watch) -> Group:
    """A row for each window: tokens read so far, time, passes, what each pass changed, what is answered after it."""
    passes = _shown_passes(watch.num_passes)
    notes = ["relative change of the fast weights, in %, mean over blocks"]
    if watch.texts:
        notes.append(f"right: questions about {watch.texts} texts, in %, asked after that window")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for name in ("window", "tokens", "s", "passes", *(f"pass {n}" for n in passes), *["right"] * bool(watch.texts)):
        table.add_column(name, justify="right", no_wrap=True)
    if watch.texts:
        table.add_row("", "0", *[""] * (2 + len(passes)), _percent(watch.accuracy[0]))
    first = watch.num_windows - len(watch.windows)
    for i, window in enumerate(watch.windows):
        if _skipped(i, len(watch.windows)):
            continue
        asked = [_percent(watch.accuracy[i + 1])] if watch.texts else []
        table.add_row(f"{first + i + 1:,}", *_cells(window, passes), *asked)
        if _skipped(i + 1, len(watch.windows)):
            table.add_row("…")
    return Group(Text(plain(watch.title), "bold"), table, Text("; ".join(notes), "dim"))  # as wide as the terminal


def _cells(window: Window, passes: list[int]) -> list[str]:
    changed = (window.change.get(n, {}).values() for n in passes)
    changes = [_percent(fmean(by_block)) if by_block else "" for by_block in changed]
    return [f"{window.start + window.tokens:,}", f"{window.seconds:.3g}", f"{window.passes:g}", *changes]


def _skipped(i: int, windows: int) -> bool:
    half = _MOST_WINDOWS // 2
    return windows > _MOST_WINDOWS and half <= i < windows - half


def _shown_passes(passes: int) -> list[int]:
    """All; of many the first, powers of two, and the last."""
    if passes <= _MOST_PASSES:
        return list(range(1, passes + 1))
    powers = [2**i for i in range(_MOST_PASSES - 1) if 2**i < passes]
    return [*powers, passes]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
