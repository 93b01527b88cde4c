"""Tables show the numbers of their cards, in 80 characters."""

from __future__ import annotations

import io

import pytest
from fake_cards import comparison, run_card, summary
from rich.console import Console
from rich.table import Table

from reverie.card import ComparisonCard, RunCard, compare_runs
from reverie.tables import comparison_table, result_verdict, run_table, verdict


def printed(table: Table, width: int = 80) -> list[str]:
    """Its lines, as in a file or a pipe."""
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def small() -> ComparisonCard:
    return compare_runs(
        "depo/small",
        "question",
        [
            run_card("transformer", 1, 0, summary({2: 0.26, 10: 0.24}, exact=0.01), tokens=46_080_000),
            run_card("sleep", 2, 0, summary({2: 0.7, 10: 0.1}, exact=0.1), tokens=1_234_000_000),
            run_card("sleep", 2, 1, summary({2: 0.9, 10: 0.3}, exact=0.2), tokens=1_234_000_000),
            run_card("sleep", 4, 0, summary({2: 1.0, 10: 0.96}, exact=0.7), wall_time_s=9000.0),
        ],
    )


def test_rows_hold_what_the_card_holds():
    lines = [line.split() for line in printed(comparison_table(small()))]
    assert ["model", "N", "accuracy", "2", "10", "verdict", "tokens", "time"] in lines
    assert ["transformer", "25.0", "26", "24", "chance", "46.1M", "100", "s"] in lines
    assert ["sleep", "2", "50.0", "±", "14.1", "80", "20", "failing", "1.23B", "3.33", "min"] in lines
    assert ["sleep", "4", "98.0", "100", "96", "solved", "1k", "2.5", "h"] in lines
    assert ["chance", "25.0", "25", "25"] in lines


def test_a_run_s_rows_are_its_curve_its_score_and_chance():
    run = comparison(points=30).runs[-1]
    lines = [line.split() for line in printed(run_table(run)) if line]
    steps = [int(line[0]) for line in lines if line[0].isdigit() and line[-1].isdigit()]
    assert (steps[0], steps[-1], len(steps)) == (0, 3000, 12)
    final = next(line for line in lines if line[0] == "final")
    assert f"{100 * run.score['question_accuracy']:.1f}" in final
    assert f"{100 * run.score['exact_accuracy']:.1f}" in final
    assert next(line for line in lines if line[0] == "chance")[1] == "1.4"


def test_a_run_without_a_curve_still_has_its_score():
    lines = printed(run_table(run_card("sleep", 2, 0, summary({2: 0.7, 10: 0.1}, exact=0.1))))
    assert any(line.split()[0] == "final" for line in lines if line)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("depths", [(32,), (1, 2, 4, 8, 16), tuple(range(1, 17))])
def test_no_cell_is_cut_and_no_line_is_too_long(width: int, depths: tuple[int, ...]):
    card = comparison(points=3, depths=depths)
    for table in (comparison_table(card), run_table(card.runs[0])):
        lines = printed(table, width)
        assert max(map(len, lines)) <= width
        assert "…" not in "".join(lines)


def test_many_depths_are_thinned_and_that_is_said():
    text = " ".join(printed(comparison_table(comparison(points=3, depths=tuple(range(1, 17))))))
    assert "per question by hops k: 1 to 16 (5 of 16 shown)" in " ".join(text.split())


@pytest.mark.parametrize(
    ("accuracy", "chance", "expected"),
    [
        (0.95, 0.5, "solved"),
        (0.949, 0.5, "failing"),
        (0.54, 0.5, "failing"),
        (0.52, 0.5, "chance"),
        (0.1, 0.5, "chance"),
    ],
)
def test_the_verdict(accuracy: float, chance: float, expected: str):
    assert verdict(accuracy, chance) == expected


def test_a_depth_below_the_mark_is_not_solved_by_the_mean():
    run: RunCard = run_card("sleep", 2, 0, summary({d: 1.0 for d in range(1, 10)} | {10: 0.8}, exact=0.5))
    (result,) = compare_runs("fake", "question", [run]).results
    assert result.accuracy > 0.95
    assert result_verdict(result) == "failing"


def test_colour_marks_solved_and_chance():
    cells = comparison_table(small()).columns[3].cells  # depth 2
    assert [getattr(cell, "style", None) for cell in cells][:3] == ["dim", "", "bold"]
