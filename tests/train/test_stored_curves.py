"""Curves of two nano recipes are, to the digits that cards show, those of the version that they were taken from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils._pytree import tree_flatten

pytestmark = pytest.mark.slow

STORED: dict[str, Any] = json.loads(Path(__file__).with_name("stored_curves.json").read_text(encoding="utf-8"))
SHORT = ("train.steps=6", "train.eval_every=3", "train.eval_examples=32", "train.batch_size=16")


@pytest.mark.parametrize(("recipe", "passes"), [("depo/nano", 3), ("rule110/nano", 2)])
def test_the_curve_is_the_stored_one(tmp_path: Path, recipe: str, passes: int) -> None:
    settings = [f"--set={setting}" for setting in (*SHORT, f"sleep.num_sleep_passes={passes}")]
    command = [sys.executable, "-m", "reverie", "train", recipe, "--out", str(tmp_path), "--device=cpu", *settings]
    subprocess.run(command, check=True, capture_output=True)
    curve = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))["curve"]
    for point in curve:
        del point["wall_time_s"]
    numbers, names = tree_flatten(curve)
    wanted, names_wanted = tree_flatten(STORED[f"{recipe}, N = {passes}"])
    assert names == names_wanted
    # Five digits are stored, and the last of them is another one where processors round differently.
    assert numbers == pytest.approx(wanted, rel=2e-4)
