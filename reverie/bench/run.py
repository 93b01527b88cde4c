"""Runs a benchmark and makes its card."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from reverie.bench import memory, ops, sleep, train, wake
from reverie.bench.card import BenchmarkCard, Findings, Report
from reverie.bench.machine import Peak, library_versions, measure_peak
from reverie.results.provenance import commit_id, hardware

BENCHMARKS: dict[str, Callable[[Peak, Report], Findings]] = {
    "ops": ops.measure,
    "train": train.measure,
    "sleep": sleep.measure,
    "memory": memory.measure,
    "wake": wake.measure,
}


def run_benchmark(name: str, report: Report = lambda done, total, what: None) -> BenchmarkCard:
    """Measure the machine's peak, then the benchmark.

    Raises:
        UserError: a result is wrong (no time is taken then), or a library is missing.
    """
    commit, begun = commit_id(), time.perf_counter()
    peak = measure_peak()
    findings = BENCHMARKS[name](peak, report)
    return BenchmarkCard(
        **dict(findings),
        met=findings.reached,
        peak=peak,
        versions=library_versions(),
        hardware=hardware(),
        commit=commit,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        wall_time_s=time.perf_counter() - begun,
    )
