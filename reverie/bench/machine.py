"""The machine: what it can do at best, measured in the same run as what is compared with it, and its memory."""

import importlib.metadata
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from reverie.bench.timer import alternate
from reverie.errors import UserError

MATRIX_SIZE = 2048
COPY_BYTES = 2**29  # both ends together are larger than any cache
LIBRARIES = ("torch", "triton", "transformers", "fla-core", "numpy")


class Peak(BaseModel):
    """Peak rates of this process, with the threads that torch uses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    float32_gflops: float
    bfloat16_gflops: float
    copy_gb_per_s: float  # bytes read and bytes written

    def share(self, gflops: float) -> float:
        """The share of the float32 matmul peak, in percent."""
        return 100 * gflops / self.float32_gflops


def measure_peak(size: int = MATRIX_SIZE, copy_bytes: int = COPY_BYTES, seconds: float = 3.0) -> Peak:
    """Square matrix products and a copy in turn; the best round of each."""
    a, b = torch.randn(2, size, size).unbind()
    a_half, b_half = a.bfloat16(), b.bfloat16()
    source, sink = torch.ones(2, copy_bytes // 4).unbind()
    best = alternate(
        {"float32": lambda: a @ b, "bfloat16": lambda: a_half @ b_half, "copy": lambda: sink.copy_(source)},
        seconds=seconds,
    )
    flops = 2 * size**3
    return Peak(
        float32_gflops=flops / best["float32"].best / 1e9,
        bfloat16_gflops=flops / best["bfloat16"].best / 1e9,
        copy_gb_per_s=2 * source.nbytes / best["copy"].best / 1e9,
    )


def library_versions(libraries: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Versions of those of these libraries that are installed."""
    versions = {}
    for name in libraries:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


RESIDENT = "resident memory" if Path("/proc/self/statm").exists() else "the most resident memory so far"


def resident_bytes() -> int:
    """Memory of this process now, on Linux; elsewhere the most that it had so far.

    Raises:
        UserError: on Windows, which does not say.
    """
    if sys.platform == "win32":
        raise UserError("the memory of a process is read as Unix systems say it, and Windows does not")
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
