"""Where the time of a training step goes, by kind of kernel, from `torch.profiler`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity

# First match wins; what a kernel is called tells what it does. Of kernels that `torch.compile` has written the
# beginning tells most: behind it comes every operation that was fused into it.
KINDS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("fused by compile", r"^triton_(?!tem)|compiledfxgraph|^graph_\d+_cpp_fused|^cpp_fused"),
        ("attention", r"^triton_tem.*attention"),
        ("matrix products", r"^triton_tem"),
        ("fast-weight kernels", r"^reverie::|^(forward|backward)$"),  # reverie's own
        ("fast-weight kernels", r"delta_rule|^chunk_|fwd_h|bwd_dh|recompute_w_u|wy_|solve_tril|_inverse_kernel|gated"),
        ("optimiser", r"multi_tensor_apply|adam|optimizer"),
        ("copies", r"memcpy|memset|copy|fill|catarray|\bcat\b|index|gather|scatter|embedding|::pad|constant_pad|zero"),
        ("attention", r"flash|fmha|attention|sdpa|(?<!log)softmax"),
        ("matrix products", r"gemm|gemv|cutlass|nvjet|cublas|xmma|mm\b|trsm|triangular|split_?k|dot_kernel|::dot"),
    )
)
OTHER = "other elementwise"


def profiler(device: torch.device) -> torch.profiler.profile:
    """To be started and stopped around some steps."""
    # Not both on CUDA: a step launches thousands of kernels, and what the CPU did for each would take minutes to read.
    return torch.profiler.profile(activities=[ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU])


def kind_of(kernel: str) -> str:
    """Of a kernel, or on a CPU an operation, as the profiler names it."""
    return next((kind for kind, pattern in KINDS if pattern.search(kernel.lower())), OTHER)


def time_by_kind(
    found: torch.profiler.profile, device: torch.device, steps: int, seconds: float
) -> list[dict[str, Any]]:
    """Milliseconds a step and launches by kind, most first; "idle" is what is left of the `seconds` they took.

    One kernel runs at a time here, so their times add up. A product inside of the optimiser counts as a product.
    """
    kinds: dict[str, list[float]] = {}
    busy = 0.0
    for name, microseconds in _kernels(found, device):
        row = kinds.setdefault(kind_of(name), [0.0, 0])
        row[0] += microseconds / 1e3 / steps
        row[1] += 1
        busy += microseconds / 1e3 / steps
    rows = [
        {"kind": kind, "ms": ms, "launches": round(count / steps), "share": ms / (1e3 * seconds / steps)}
        for kind, (ms, count) in sorted(kinds.items(), key=lambda item: -item[1][0])
    ]
    idle = max(1e3 * seconds / steps - busy, 0.0)
    return [*rows, {"kind": "idle", "ms": idle, "launches": 0, "share": idle / (1e3 * seconds / steps)}]


def slowest(found: torch.profiler.profile, device: torch.device, steps: int, count: int = 12) -> list[dict[str, Any]]:
    """The kernels that take most, by name."""
    times: dict[str, list[float]] = {}
    for name, microseconds in _kernels(found, device):
        row = times.setdefault(name[:90], [0.0, 0])
        row[0] += microseconds / 1e3 / steps
        row[1] += 1
    ordered = sorted(times.items(), key=lambda item: -item[1][0])[:count]
    return [{"kernel": name, "ms": ms, "launches": round(n / steps)} for name, (ms, n) in ordered]


def _kernels(found: torch.profiler.profile, device: torch.device) -> Iterable[tuple[str, float]]:
    """Name and microseconds of every kernel; on a CPU of every operation, without those that it calls."""
    for event in found.events() or ():
        if device.type == "cuda":
            if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
                yield event.name, event.device_time_total
        elif event.self_cpu_time_total > 0 and not event.name.startswith("ProfilerStep"):
            yield event.name, event.self_cpu_time_total
