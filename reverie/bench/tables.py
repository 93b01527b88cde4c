"""Benchmark cards as tables: for the terminal, and in Markdown for docs/PERFORMANCE.md."""

import math
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from reverie.bench.card import BenchmarkCard, Cell, Row


def rich_tables(card: BenchmarkCard) -> Group:
    """The verdict, the tables, and the notes below them."""
    parts: list[Table | Text] = [Text(verdict(card), "bold"), Text(machine(card), "dim")]
    for title, rows in card.details.tables.items():
        table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title_justify="left")
        columns = _columns(rows)
        for column, words in columns.items():
            table.add_column(column.replace("_", " "), justify="left" if words else "right")
        for row in rows:
            table.add_row(*(_shown(row.get(column)) for column in columns))
        parts += [Text(), table]
    return Group(*parts, Text(), Text("\n".join(card.details.notes), "dim"))


def markdown(card: BenchmarkCard) -> str:
    """The same for a document."""
    parts = [f"**{verdict(card)}** {machine(card)}"]
    for title, rows in card.details.tables.items():
        columns = _columns(rows)
        head = [column.replace("_", " ") for column in columns]
        body = [[_shown(row.get(column)) for column in columns] for row in rows]
        right = [not words for words in columns.values()]
        parts += [f"{title[:1].upper()}{title[1:]}:", markdown_table(head, body, right)]
    return "\n\n".join([*parts, "\n".join(f"* {note}" for note in card.details.notes)])


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[bool] | None = None) -> str:
    """A table of cells as they are; `right` says which columns stand to the right, none if absent."""
    rule = ["---:" if one else "---" for one in right or [False] * len(head)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))


def verdict(card: BenchmarkCard) -> str:
    """The ratio, its target, and whether that is met, in a sentence."""
    wanted = "at least" if card.better == "higher" else "at most"
    return (
        f"{card.name}: ratio {card.ratio:.4g}, target {wanted} {card.target:.4g}: {'met' if card.met else 'not met'}."
    )


def machine(card: BenchmarkCard) -> str:
    """The machine, what it can do at best, and the versions of libraries, in a sentence."""
    hardware, peak = card.hardware, card.peak
    versions = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    return (
        f"{hardware.cpu}, threads: {hardware.threads}; matmul peak {peak.float32_gflops:.0f} GFLOPS in float32, "
        f"{peak.bfloat16_gflops:.0f} in bfloat16, copy {peak.copy_gb_per_s:.1f} GB/s; {versions}."
    )


def _columns(rows: Iterable[Row]) -> dict[str, bool]:
    """Every column of the table, and whether it holds words."""
    columns: dict[str, bool] = {}
    for row in rows:
        for column, cell in row.items():
            columns[column] = columns.get(column, False) or isinstance(cell, str)
    return columns


def _shown(cell: Cell) -> str:
    """Three digits of a measurement, all of a count."""
    if cell is None:
        return ""
    if not isinstance(cell, float):
        return str(cell)
    if cell and not 1e-3 <= abs(cell) < 1e9:
        return f"{cell:.1e}"
    digits = max(0, 2 - math.floor(math.log10(abs(cell)))) if cell else 0
    return f"{cell:,.{digits}f}"
