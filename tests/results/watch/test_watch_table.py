"""The table of made-up numbers, row by row."""

from __future__ import annotations

import math
from io import StringIO

from fake_watch import watched
from rich.console import Console

from reverie.results.watch.collect import Watch
from reverie.results.watch.table import watch_table


def printed(watch: Watch) -> list[list[str]]:
    console = Console(file=StringIO(), width=200)
    console.print(watch_table(watch))
    return [line.split() for line in console.file.getvalue().splitlines()]  # pyright: ignore


def test_the_table_has_a_row_for_each_window() -> None:
    rows = printed(watched(3, 2, [1, 3], asked=True))
    assert rows[1] == ["window", "tokens", "s", "passes", "pass", "1", "pass", "2", "right"]
    assert rows[3] == ["0", "0.0"]
    mean = 100 * (math.exp(-1.1) + math.exp(-1.3)) / 2
    assert rows[4] == ["126", "1,008", "0.02", "2", f"{mean:.1f}", f"{mean / math.e:.1f}", "33.3"]


def test_the_table_of_a_long_text_leaves_windows_out() -> None:
    rows = printed(watched(1024, 20, [1]))
    windows = [row[0] for row in rows if row and row[0][0].isdigit()]
    assert windows == [*map(str, range(126, 138)), *(f"{n:,}" for n in range(1138, 1150))]
    assert [row for row in rows if row == ["…"]] == [["…"]]
    assert rows[1][4:] == ["pass", "1", "pass", "2", "pass", "4", "pass", "8", "pass", "20"]


def test_a_name_does_not_steer_the_terminal() -> None:
    title = " ".join(printed(watched(2, 1, [0]).model_copy(update={"name": "a\x1b[2J\nb"}))[0])
    assert title.startswith("a\ufffd[2J\ufffdb: ")
