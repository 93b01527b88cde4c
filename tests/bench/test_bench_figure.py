"""Figures of benchmarks draw what their cards hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_benchmark import benchmark_card

from reverie.bench.card import BenchmarkCard, Panel
from reverie.bench.figure import draw, lines_of
from reverie.results.card import save_card
from reverie.results.plots import KINDS, plot_cards


def test_a_line_a_column_without_empty_cells() -> None:
    card = benchmark_card()
    assert lines_of(card, card.details.panels[0]) == {
        "ours": ([64, 128, 64], [1.2345678, 0.00456, 7.0]),
        "theirs": ([64, 64], [3.0, 41234.5]),
    }


def test_rows_are_picked_and_split() -> None:
    card = benchmark_card()
    panel = Panel(title="", table="speed", x="T", y=("ours_ms",), by="model", where={"T": 64}, y_label="ms")
    assert lines_of(card, panel) == {"ours": ([64], [1.2345678]), "other": ([64], [7.0])}


def test_every_panel_is_drawn_with_its_numbers() -> None:
    card = benchmark_card()
    drawing = draw(card)
    assert [axes.get_title(loc="left") for axes in drawing.axes] == [panel.title for panel in card.details.panels]
    over_T, by_model, _, loss = drawing.axes
    for axes, panel in ((over_T, card.details.panels[0]), (loss, card.details.panels[3])):
        for line, (xs, ys) in zip(axes.get_lines(), lines_of(card, panel).values(), strict=True):
            assert list(line.get_xdata()) == xs  # type: ignore[arg-type]
            assert list(line.get_ydata()) == ys  # type: ignore[arg-type]
    assert [bar.get_height() for bar in by_model.patches] == [1.2345678, 7.0]  # type: ignore[attr-defined]
    assert [tick.get_text() for tick in by_model.get_xticklabels()] == ["ours", "other"]
    assert over_T.get_yscale() == "log"
    assert loss.get_ylim()[0] == 0
    assert drawing.get_suptitle() == "fake: ratio 2, target at least 3: not met."


@pytest.mark.parametrize("name", ["fake.json", "a b.json"])
def test_plot_draws_a_benchmark_beside_its_card(tmp_path: Path, name: str) -> None:
    save_card(benchmark_card(), tmp_path / name)
    image = (tmp_path / name).with_suffix(".png")
    assert plot_cards([tmp_path / name], kinds=KINDS | {"benchmark": (BenchmarkCard, draw)}) == [image]
    assert image.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, image.name])
