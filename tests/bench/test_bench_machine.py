"""The peak is what was measured, and memory what there is."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from mmap import PAGESIZE, mmap
from pathlib import Path
from typing import Any

import pytest

from reverie.bench import machine
from reverie.bench.machine import Peak, library_versions, measure_peak, resident_bytes
from reverie.bench.timer import Timing
from reverie.errors import UserError


def test_the_peak_is_of_the_best_round(monkeypatch: pytest.MonkeyPatch) -> None:
    def alternate(calls: Mapping[str, Callable[[], object]], **_: Any) -> dict[str, Timing]:
        for call in calls.values():
            call()
        return {name: Timing(rounds=[0.5, 1 / (1 << i), 2.0]) for i, name in enumerate(calls, start=2)}

    monkeypatch.setattr(machine, "alternate", alternate)
    assert measure_peak(size=100, copy_bytes=4_000_000) == Peak(
        float32_gflops=4 * 2 * 100**3 / 1e9,
        bfloat16_gflops=8 * 2 * 100**3 / 1e9,
        copy_gb_per_s=16 * 2 * 4_000_000 / 1e9,
    )


def test_the_peak_of_this_machine_is_sane() -> None:
    peak = measure_peak(size=256, copy_bytes=2**20, seconds=0.0)
    assert 0.1 < peak.float32_gflops < 1e5
    assert 0.01 < peak.bfloat16_gflops < 1e6
    assert 0.01 < peak.copy_gb_per_s < 1e4


def test_shares_are_of_the_peak_in_that_number_format() -> None:
    peak = Peak(float32_gflops=200.0, bfloat16_gflops=400.0, copy_gb_per_s=1.0)
    assert peak.share(50.0) == 25.0


def test_versions_of_what_is_installed() -> None:
    assert library_versions(("torch", "no-such-library")) == {"torch": importlib.metadata.version("torch")}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="elsewhere only the peak is known")
def test_resident_memory_comes_and_goes() -> None:
    """Pages of the system's own: an allocator may keep what is freed."""
    before = resident_bytes()
    with mmap(-1, 200_000_000) as held:
        for at in range(0, len(held), PAGESIZE):
            held[at] = 1
        with_it = resident_bytes()
    assert with_it - before == pytest.approx(200e6, rel=0.1)
    assert resident_bytes() - before < 20e6


def test_resident_memory_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = resident_bytes()
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / "nowhere")
    assert resident_bytes() >= 0.9 * now  # the most so far
    monkeypatch.setattr(machine.sys, "platform", "win32")
    with pytest.raises(UserError, match="Windows does not"):
        resident_bytes()
