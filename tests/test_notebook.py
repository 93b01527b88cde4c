"""docs/learn/sleep_step_by_step.py runs as it stands, and what it asserts is so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "learn" / "sleep_step_by_step.py"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    environment = {**os.environ, "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, NOTEBOOK], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "right: 6  from memory: 6" in done.stdout
