"""docs/PERFORMANCE.md shows what the cards in results/performance say."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_benchmark import benchmark_card

from reverie.bench.run import BENCHMARKS
from reverie.bench.tables import markdown
from reverie.errors import UserError
from reverie.results.card import save_card

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
performance: Any = importlib.import_module("performance")

PAGE = performance.PAGE.read_text(encoding="utf-8")


def test_the_page_is_as_the_cards_have_it() -> None:
    assert performance.filled(PAGE, performance.CARDS) == PAGE
    assert "Not measured yet." not in PAGE


def test_every_benchmark_has_its_place_and_its_command() -> None:
    assert re.findall(r"<!-- table: (\w+) -->", PAGE) == list(BENCHMARKS)
    assert re.findall(r"^reverie bench (\w+)", PAGE, flags=re.MULTILINE) == list(BENCHMARKS)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"for name in {' '.join(BENCHMARKS)}; do" in makefile


def test_tables_come_from_cards_and_the_rest_stays(tmp_path: Path) -> None:
    page = (
        "Before.\n\n<!-- table: ops -->\nold\n| x |\n<!-- end -->\n\nBetween.\n\n<!-- table: train -->\n<!-- end -->\n"
    )
    card = benchmark_card(name="ops")
    save_card(card, tmp_path / "ops.json")
    filled = performance.filled(page, tmp_path)
    assert filled.startswith("Before.\n\n<!-- table: ops -->\n**ops: ratio 2,")
    assert filled.endswith("<!-- end -->\n\nBetween.\n\n<!-- table: train -->\nNot measured yet.\n<!-- end -->\n")
    assert markdown(card) in filled
    assert "[Card](../results/performance/ops.json) of 2026-07-01, commit 0123456789." in filled
    assert "old" not in filled
    assert performance.filled(filled, tmp_path) == filled


def test_the_page_is_rewritten_in_one_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- table: ops -->\n<!-- end -->\n")
    monkeypatch.setattr(performance, "PAGE", page)
    monkeypatch.setattr(performance, "CARDS", tmp_path)
    save_card(benchmark_card(name="ops"), tmp_path / "ops.json")
    performance.main()
    assert "| ours | 64 | 1.23 |" in page.read_text()
    (tmp_path / "ops.json").write_text("{}")
    before = page.read_text()
    with pytest.raises(UserError, match="not a result card"):
        performance.main()
    assert page.read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ops.json", "page.md"]
