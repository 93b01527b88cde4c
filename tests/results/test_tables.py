"""Tables show the numbers of their cards, in 80 characters."""

from __future__ import annotations

import io
import math

import pytest
from fake_cards import comparison, passes_card, run_card, summary
from rich.console import Console
from rich.table import Table

from reverie.recipe.random_passes import RandomPasses
from reverie.results.card import ComparisonCard, RunCard
from reverie.results.comparison import compare_runs
from reverie.results.tables import (
    comparison_table,
    depth_table,
    passes_tables,
    result_verdict,
    run_table,
    verdict,
    wilson_interval,
)


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


def test_a_run_at_every_depth():
    score = summary({1: 1.0, 2: 0.8, 10: 0.25}, exact=0.3)
    score["by_depth"]["2"]["questions"] = 10
    lines = printed(depth_table(run_card("sleep", 4, 3, score)))
    rows = [line.split() for line in lines]
    assert ["hops", "k", "accuracy", "interval", "chance", "questions"] in rows
    assert ["1", "100.0", "99.3", "to", "100.0", "25.0", "512"] in rows
    assert ["2", "80.0", "49.0", "to", "94.3", "25.0", "10"] in rows
    assert ["10", "25.0", "21.4", "to", "28.9", "25.0", "512"] in rows
    said = " ".join(" ".join(lines).split())
    assert "seed 3; questions all of whose tokens are right, in %, with a 95 % interval (Wilson, as if each" in said


def test_every_depth_has_its_row_and_colour():
    table = depth_table(comparison(points=3, depths=tuple(range(1, 31))).runs[0])
    assert table.row_count == 30
    cells = depth_table(run_card("sleep", 4, 3, summary({1: 1.0, 2: 0.8, 10: 0.25}, exact=0.3))).columns[1].cells
    assert [getattr(cell, "style", None) for cell in cells] == ["bold", "", "dim"]


# Known values; none of n right ends at z² / (n + z²).
@pytest.mark.parametrize(
    ("right", "number", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (5, 10, 0.2366, 0.7634),
        (1, 2, 0.0945, 0.9055),
        (50, 100, 0.4038, 0.5962),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (0, 1, 0.0, 0.7935),
        (1, 1, 0.2065, 1.0),
        (1600, 1600, 0.9976, 1.0),
    ],
)
def test_wilson_interval(right: int, number: int, low: float, high: float):
    assert wilson_interval(right / number, number) == pytest.approx((low, high), abs=1e-4)


def test_the_interval_holds_the_share_and_narrows():
    for share in (0.0, 0.3, 0.999, 1.0):
        bounds = [wilson_interval(share, number) for number in (1, 10, 1000, 10**9)]
        assert all(0 <= low <= share <= high <= 1 for low, high in bounds)
        widths = [high - low for low, high in bounds]
        assert widths == sorted(widths, reverse=True)
    assert wilson_interval(0.5, 100, z=0.0) == (0.5, 0.5)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Over all outcomes of 40 questions, on average over how likely a right answer truly is."""
    bounds = [wilson_interval(k / 40, 40) for k in range(41)]
    truths = [i / 100 for i in range(5, 96)]
    covered = [
        sum(math.comb(40, k) * p**k * (1 - p) ** (40 - k) for k, (low, high) in enumerate(bounds) if low <= p <= high)
        for p in truths
    ]
    assert sum(covered) / len(truths) == pytest.approx(0.95, abs=0.01)
    for p in wilson_interval(0.3, 50):  # where the share lies 1.96 standard errors away
        assert abs(p - 0.3) == pytest.approx(1.96 * (p * (1 - p) / 50) ** 0.5)


def test_no_questions_have_no_interval():
    with pytest.raises(ValueError, match="an interval needs one question or more, got 0"):
        wilson_interval(0.5, 0)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("depths", [(32,), (1, 2, 4, 8, 16), tuple(range(1, 17))])
def test_no_cell_is_cut_and_no_line_is_too_long(width: int, depths: tuple[int, ...]):
    card = comparison(points=3, depths=depths)
    for table in (comparison_table(card), run_table(card.runs[0]), depth_table(card.runs[0])):
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


RANDOM = RandomPasses(distribution="uniform", mean=4, max=7)


def test_accuracy_at_every_number_of_passes():
    card = passes_card([4, RANDOM])
    lines = printed(passes_tables(card)[0])
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines]
    assert ["trained", "with", "N", "=", "1", *"2345678"] in rows
    for regime in card.regimes:
        at = rows.index(f"{regime.label}, 3 seeds".split() + [f"{100 * r.accuracy.mean:.1f}" for r in regime.fixed])
        assert rows[at + 1] == ["lowest", "seed", *(f"{100 * r.accuracy.low:.1f}" for r in regime.fixed)]
        assert rows[at + 2] == ["highest", "seed", *(f"{100 * r.accuracy.high:.1f}" for r in regime.fixed)]
    assert ["chance", *["25.0"] * 8] in rows


def test_what_adaptive_sleep_reaches_spends_and_saves():
    card = passes_card([4, RANDOM], seeds=1)
    lines = printed(passes_tables(card)[1])
    assert max(map(len, lines)) <= 80
    result = card.regimes[1].adaptive[0]
    row = next(line for line in lines if line.startswith("random N, 1 to 7"))
    assert row.split()[5:] == [
        "0.5", f"{100 * result.accuracy.mean:.1f}", f"{100 * card.regimes[1].fixed[-1].accuracy.mean:.1f}",
        f"{result.passes.mean:.2f}", "29", "%", f"{result.equal_passes.mean:.2f}", f"{result.saved.mean:+.2f}",
    ]  # fmt: skip
    assert not any("*" in line for line in lines)
    assert len(passes_tables(passes_card([4], tolerances=[]))) == 1


def test_a_seed_that_beats_every_fixed_number_is_starred():
    lines = printed(passes_tables(passes_card([4], numbers=[1, 8], tolerances=[0.7]))[1])
    assert any("8.00*" in line for line in lines)
    assert "in a seed no N is as accurate" in " ".join(lines)


def test_an_unfinished_run_is_named():
    card = passes_card([4], seeds=1)
    training = card.runs[0].training.model_copy(update={"steps": 7})
    said = printed(
        passes_tables(card.model_copy(update={"runs": [card.runs[0].model_copy(update={"training": training})]}))[0]
    )
    assert "N = 4, seed 0: step 7 of 10" in " ".join(" ".join(said).split())
