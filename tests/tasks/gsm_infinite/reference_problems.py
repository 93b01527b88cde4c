"""The benchmark's own problems, which are not part of the repository: tests read them where they are there."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

_BESIDE = Path(__file__).parents[4] / "shared" / "gsm_infinite" / "reference.jsonl.gz"


def reference_problems() -> list[dict[str, Any]]:
    """All 588; the test is skipped where the file is neither beside the checkout nor in REVERIE_GSM_REFERENCE."""
    path = Path(os.environ.get("REVERIE_GSM_REFERENCE", _BESIDE))
    if not path.exists():
        pytest.skip("the benchmark's problems are not here; REVERIE_GSM_REFERENCE may say where they are")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines]
    assert len(problems) == 588
    return problems
