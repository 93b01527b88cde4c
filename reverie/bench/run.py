"""Runs a benchmark and makes its card."""

import importlib
import time
from datetime import UTC, datetime

from reverie.bench.card import BenchmarkCard, Findings
from reverie.bench.machine import library_versions, measure_peak
from reverie.results.card import Report
from reverie.results.provenance import commit_id, hardware

BENCHMARKS = ("ops", "train", "sleep", "memory", "wake", "decode", "pretrained", "read", "serve")
"""Each is a file in this folder, with a function `measure(peak, report)`; imported when it runs."""


def run_benchmark(name: str, report: Report = lambda done, total, what: None) -> BenchmarkCard:
    """Measure the machine's peak, then the benchmark.

    Raises:
        UserError: a result is wrong (no time is taken then), or a library is missing.
    """
    commit, begun = commit_id(), time.perf_counter()
    peak = measure_peak()
    findings: Findings = importlib.import_module(f"reverie.bench.{name}").measure(peak, report)
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
