"""Curves of two nano recipes are, to the last bit, those of the version that these hashes were taken from."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

# The same instructions on every x86 processor: results differ in the last bits between instruction sets.
SAME_EVERYWHERE = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
}
SHORT = ("train.steps=6", "train.eval_every=3", "train.eval_examples=32", "train.batch_size=16")


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not torch.__version__.startswith("2.13."),
    reason="hashes were taken with torch 2.13 on x86",
)
@pytest.mark.parametrize(
    ("recipe", "passes", "sha256"),
    [
        ("depo/nano", 3, "31e53f9566664db28acf5c3eb0c18686517d8fc4f471d31753df40e233645cfc"),
        ("rule110/nano", 2, "185c78f57c79d4f8544fbd637c1b8573c6ef80e0fce4179de4202b6495bf6d91"),
    ],
)
def test_the_curve_is_the_stored_one(tmp_path: Path, recipe: str, passes: int, sha256: str) -> None:
    settings = [f"--set={setting}" for setting in (*SHORT, f"sleep.num_sleep_passes={passes}")]
    command = [sys.executable, "-m", "reverie", "train", recipe, "--out", str(tmp_path), "--device=cpu", *settings]
    subprocess.run(command, check=True, env=os.environ | SAME_EVERYWHERE, capture_output=True)
    curve = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))["curve"]
    for point in curve:
        del point["wall_time_s"]
    assert hashlib.sha256(json.dumps(curve, sort_keys=True).encode()).hexdigest() == sha256
