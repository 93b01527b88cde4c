"""The table of what was watched, for the terminal."""

from collections.abc import Sequence
from statistics import fmean

from rich.console import Group
from rich.text import Text

from reverie.errors import plain
from reverie.memory.history import Window
from reverie.results.tables import new_table, percent
from reverie.results.watch.collect import Watch

_HALF = 12  # windows of a long text that are shown at its beginning, and at its end


def watch_table(watch: Watch) -> Group:
    """A row for each window: tokens read so far, time, passes, what each pass changed, what is answered after it."""
    N, W = watch.num_passes, len(watch.windows)
    passes = range(1, N + 1) if N <= 5 else [n for n in (1, 2, 4, 8) if n < N] + [N]  # 80 characters have room for five
    right = [[percent(share)] for share in watch.accuracy] if watch.texts else [[]] * (W + 1)
    names = ["window", "tokens", "s", "passes", *(f"pass {n}" for n in passes), *["right"] * bool(watch.texts)]
    rows = [_cells(window, passes) + right[i] for i, window in enumerate(watch.windows, 1)]
    rows = [[f"{i:,}", *row] for i, row in enumerate(rows, watch.num_windows - W + 1)]
    if W > 2 * _HALF:
        rows[_HALF:-_HALF] = [["…"]]
    table = new_table(right=names)
    if watch.texts:
        table.add_row("", "0", *[""] * (2 + len(passes)), *right[0])
    for row in rows:
        table.add_row(*row)
    note = "relative change of the fast weights, in %, mean over blocks"
    if watch.texts:
        note += f"; right: questions about {watch.texts} texts, in %, asked after that window"
    return Group(Text(plain(watch.title), "bold"), table, Text(note, "dim"))  # as wide as the terminal


def _cells(window: Window, passes: Sequence[int]) -> list[str]:
    changed = (window.change.get(n, {}).values() for n in passes)
    changes = [percent(fmean(by_block)) if by_block else "" for by_block in changed]
    return [f"{window.start + window.tokens:,}", f"{window.seconds:.3g}", f"{window.passes:g}", *changes]
