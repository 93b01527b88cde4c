"""A benchmark card with invented numbers, a peak, and what stands in for clocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fake_cards import HARDWARE

from reverie.bench.card import BenchmarkCard, Details
from reverie.bench.machine import Peak
from reverie.bench.timer import Timing, alternate

PEAK = Peak(float32_gflops=200.0, bfloat16_gflops=400.0, copy_gb_per_s=20.0)
Calls = Mapping[str, Callable[[], object]]


def benchmark_card(**changes: Any) -> BenchmarkCard:
    """Over two sizes and two models."""
    details = Details(
        tables={
            "speed": [
                {"model": "ours", "T": 64, "ours_ms": 1.2345678, "theirs_ms": 3.0, "wide": True},
                {"model": "ours", "T": 128, "ours_ms": 0.00456, "theirs_ms": None, "wide": False},
                {"model": "other", "T": 64, "ours_ms": 7.0, "theirs_ms": 41234.5},
            ]
        },
        notes=["Nothing was measured."],
    )
    fields: dict[str, Any] = {
        "name": "fake",
        "ratio": 2.0,
        "target": 3.0,
        "better": "higher",
        "met": False,
        "details": details,
        "peak": PEAK,
        "versions": {"torch": "2.13.0"},
        "hardware": HARDWARE,
        "commit": "0123456789",
        "date": "2026-07-01T12:00:00+00:00",
        "wall_time_s": 12.0,
    }
    return BenchmarkCard(**{**fields, **changes})


class Parts:
    """Notes what a benchmark reports."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int, what: str) -> None:
        assert what
        self.seen.append((done, total))

    def assert_whole(self) -> None:
        """Each part once, in order, to the end."""
        total = self.seen[0][1]
        assert self.seen == [(done, total) for done in range(total)]


def one_round(calls: Calls, **_: Any) -> dict[str, Timing]:
    """`alternate`, as short as it goes."""
    return alternate(calls, seconds=0.0, slice_s=1e-9, least=1)


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("something was measured")


def clock(times: Mapping[str, float]) -> Callable[..., dict[str, Timing]]:
    """In place of `alternate`: calls nothing, and has these medians."""

    def timed(calls: Calls, **_: Any) -> dict[str, Timing]:
        return {name: Timing(rounds=[0.5 * times[name], times[name], 9 * times[name]]) for name in calls}

    return timed
