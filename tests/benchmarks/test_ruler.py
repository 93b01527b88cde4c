"""RULER through lm-eval: what is left of a run; the run itself needs lm-eval, which is not among our packages."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from reverie.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
bench: Any = importlib.import_module("ruler")


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_lm_eval_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ruler.py", "smollm2-notes"])
    with pytest.raises(UserError, match="pip install lm-eval wonderwords nltk"):
        bench.main()


def test_the_table_has_each_task_length_and_side() -> None:
    sides = {bench.MEMORY: 0.5, bench.EMPTIED: 0.25, bench.CONTEXT: 1.0}
    card = {"name": "x", "questions": 4, "scores": {"a": {"512": sides, "1024": sides}, "b": {"1024": sides}}}
    rows = [line for line in bench.table(card).splitlines() if line.startswith(("| a", "| b"))]
    assert rows == [f"| {name} | 50 | 25 | 100 |" for name in ("a | 512", "a | 1024", "b | 1024")]
    panels = bench.figure(card).axes
    assert [panel.get_title(loc="left") for panel in panels] == ["a", "b"]
    assert sorted(line.get_ydata()[0] for line in panels[0].lines) == [0.25, 0.5, 1.0]
