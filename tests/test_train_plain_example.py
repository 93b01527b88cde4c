"""examples/train_plain.py, run for a few steps as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[1] / "examples" / "train_plain.py"


def test_it_trains_and_prints_accuracy_by_hops_for_each_number_of_passes() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE), "3"], capture_output=True, text=True, check=True)
    header, *rows = done.stdout.splitlines()
    assert header.split()[-4:] == ["1", "2", "3", "4"]
    assert [row.split()[2] for row in rows] == ["1", "2", "4"]
    shares = [float(share) for row in rows for share in re.findall(r"([\d.]+)%", row)]
    assert len(shares) == 12
    assert all(0 <= share <= 100 for share in shares)
