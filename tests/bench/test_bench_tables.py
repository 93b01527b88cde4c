"""Tables of benchmarks on a terminal and in Markdown."""

from __future__ import annotations

import io

import pytest
from fake_benchmark import benchmark_card
from rich.console import Console

from reverie.bench.card import BenchmarkCard, Cell, Details
from reverie.bench.tables import markdown, rich_tables, verdict


def one_cell(cell: Cell) -> BenchmarkCard:
    return benchmark_card(details=Details(tables={"t": [{"x": cell}]}))


def body(card: BenchmarkCard) -> list[list[str]]:
    """The cells of the Markdown tables, rows of names and dashes included."""
    lines = [line for line in markdown(card).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def test_markdown_holds_every_row() -> None:
    assert body(benchmark_card()) == [
        ["model", "T", "ours ms", "theirs ms", "wide"],
        ["---", "---:", "---:", "---:", "---:"],
        ["ours", "64", "1.23", "3.00", "True"],
        ["ours", "128", "0.00456", "", "False"],
        ["other", "64", "7.00", "41,234", ""],
    ]


def test_markdown_names_verdict_machine_limit_versions_and_notes() -> None:
    text = markdown(benchmark_card())
    assert text.startswith("**fake: ratio 2, target at least 3: not met.** Some CPU, threads: 8; ")
    assert "matmul peak 200 GFLOPS in float32, 400 in bfloat16, copy 20.0 GB/s; torch 2.13.0." in text
    assert text.endswith("* Nothing was measured.")
    assert "\n\nSpeed:\n\n| model |" in text


def test_the_terminal_shows_the_same() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(rich_tables(benchmark_card()))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.startswith("fake: ratio 2, target at least 3: not met.")
    for shown in ("41,234", "0.00456", "theirs ms", "Nothing was measured.", "matmul peak 200"):
        assert shown in text


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        (None, ""), (0.0, "0"), (3, "3"), (12345, "12345"), ("words", "words"), (0.012345, "0.0123"), (9.87654, "9.88"),
        (98.7654, "98.8"), (987.654, "988"), (-0.5, "-0.500"), (1234567.8, "1,234,568"), (4.1376e-07, "4.1e-07"),
        (2.5e10, "2.5e+10"),
    ],
)  # fmt: skip
def test_three_digits_of_a_measurement_and_all_of_a_count(cell: Cell, shown: str) -> None:
    assert body(one_cell(cell))[-1] == [shown]


def test_a_ratio_just_beside_its_target_is_seen_to_be() -> None:
    card = benchmark_card(ratio=3.6013, target=3.6, better="lower")
    assert verdict(card) == "fake: ratio 3.601, target at most 3.6: not met."
