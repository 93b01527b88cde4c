"""What the machine is, and the ceilings that it reaches: what every measured time is put beside."""

from __future__ import annotations

import shutil
import subprocess
import time
from typing import Any

import torch
from stopwatch import median_seconds, synchronise

from reverie.bench.machine import library_versions
from reverie.results.provenance import hardware

LIBRARIES = ("torch", "triton", "fla-core", "transformers", "numpy", "pydantic")
LAUNCHES = 500
SECONDS = {"cuda": 0.5, "cpu": 0.05}  # for each ceiling


def describe(device: torch.device) -> dict[str, Any]:
    """Hardware and versions; nothing that names a person, a host or a folder."""
    found: dict[str, Any] = hardware().model_dump() | {"device": device.type, "versions": library_versions(LIBRARIES)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "driver": _driver(),
        }
    return found


def ceilings(device: torch.device) -> dict[str, float]:
    """Measured now: matrix products in TFLOP/s, a copy in TB/s (bytes read and written), launches in µs.

    On random data: zeros would run faster than what training multiplies.
    """
    cuda = device.type == "cuda"
    size = 8192 if cuda else 256
    found = {"bfloat16_tflops": _product_tflops(device, size, torch.bfloat16, "highest")}
    found["float32_tflops"] = _product_tflops(device, size // 2 if cuda else size, torch.float32, "highest")
    if cuda:
        found["tf32_tflops"] = _product_tflops(device, size, torch.float32, "high")
    found["copy_tb_per_s"] = _copy_tb_per_s(device, 2**32 if cuda else 2**26)
    found["launch_us"] = 1e6 * _launch_seconds(device)
    if cuda:
        found["graph_launch_us"] = 1e6 * _graph_launch_seconds(device)
    return found


def _product_tflops(device: torch.device, size: int, dtype: torch.dtype, precision: str) -> float:
    a, b = torch.randn(2, size, size, device=device).to(dtype).unbind()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        seconds = median_seconds(lambda: a @ b, device, seconds=SECONDS[device.type])
    finally:
        torch.set_float32_matmul_precision(before)
    return 2 * size**3 / seconds / 1e12


def _copy_tb_per_s(device: torch.device, num_bytes: int) -> float:
    source = torch.randn(num_bytes // 4, device=device)
    sink = torch.empty_like(source)
    seconds = median_seconds(lambda: sink.copy_(source), device, seconds=SECONDS[device.type])
    return 2 * source.nbytes / seconds / 1e12


def _launch_seconds(device: torch.device) -> float:
    """Of one small operation among many: what eager code cannot go below."""
    x = torch.zeros(1, device=device)

    def launches() -> None:
        for _ in range(LAUNCHES):
            x.add_(1)

    launches()
    synchronise(device)
    begun = time.perf_counter()
    launches()
    synchronise(device)
    return (time.perf_counter() - begun) / LAUNCHES


def _graph_launch_seconds(device: torch.device) -> float:
    """The same inside a CUDA graph."""
    x = torch.zeros(1, device=device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            x.add_(1)
    return median_seconds(graph.replay, device) / LAUNCHES


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return lines[0].strip() if lines else None
