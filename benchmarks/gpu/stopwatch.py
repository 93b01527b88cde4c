"""Seconds of a call on a device: by CUDA events, or by the clock on a CPU; the median after a warm-up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def synchronise(device: torch.device) -> None:
    """Wait until all that was launched is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(call: Callable[[], object], device: torch.device, *, seconds: float = 0.5, least: int = 5) -> float:
    """Of calls one after the other, for that long but at least that often, after two that are not counted."""
    for _ in range(2):
        call()
    synchronise(device)
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < least or time.perf_counter() - begun < seconds:
        times.append(_event_seconds(call) if device.type == "cuda" else _clock_seconds(call))
    return statistics.median(times)


def _event_seconds(call: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _clock_seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun
