"""What the machine can do at best, measured in the same run as what is compared with it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict

from reverie.bench.timing import alternate

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

MATRIX_SIZE = 2048
COPY_BYTES = 2**29  # both ends together are larger than any cache
LIBRARIES = ("torch", "transformers", "fla-core", "numpy")


class Peak(BaseModel):
    """Of this process, with the threads that torch uses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    float32_gflops: float
    bfloat16_gflops: float
    copy_gb_per_s: float  # bytes read and bytes written

    def share(self, gflops: float, dtype: torch.dtype = torch.float32) -> float:
        """Of the matmul peak, in percent."""
        return 100 * gflops / (self.bfloat16_gflops if dtype == torch.bfloat16 else self.float32_gflops)


def measure_peak(size: int = MATRIX_SIZE, copy_bytes: int = COPY_BYTES, seconds: float = 3.0) -> Peak:
    """Square matrix products and a copy in turn; the best round of each."""
    a, b = torch.randn(2, size, size).unbind()
    a_half, b_half = a.bfloat16(), b.bfloat16()
    source, sink = torch.ones(2, copy_bytes // 4).unbind()
    best = alternate(
        {
            "float32": lambda: a @ b,
            "bfloat16": lambda: a_half @ b_half,
            "copy": lambda: sink.copy_(source),
        },
        seconds=seconds,
    )
    flops = 2 * size**3
    return Peak(
        float32_gflops=flops / best["float32"].best / 1e9,
        bfloat16_gflops=flops / best["bfloat16"].best / 1e9,
        copy_gb_per_s=2 * source.nbytes / best["copy"].best / 1e9,
    )


def count_flops(call: Callable[[], object]) -> int:
    """Multiplications and additions of the matrix products, triangular solves and attention that a call runs."""
    with flop_counter() as counter:
        call()
    return counter.get_total_flops()


def flop_counter() -> FlopCounterMode:
    """PyTorch's, which would leave out some of them, and in torch 2.11 knows no grouped heads."""
    from torch.utils.flop_counter import FlopCounterMode  # on a machine without Triton it says so, when imported

    return FlopCounterMode(display=False, custom_mapping=_ALSO_COUNTED)


def _product_flops(_: object, a: torch.Size, __: object, *, out_shape: torch.Size, **___: object) -> int:
    return 2 * a[-1] * out_shape.numel()


def _solve_flops(a: torch.Size, *_: object, out_shape: torch.Size, **__: object) -> int:
    """Half of a product with a full matrix."""
    return a[-1] * out_shape.numel()


def _attention_flops(q: torch.Size, k: torch.Size, v: torch.Size, *_: object, **__: object) -> int:
    """Scores, and what is read by them; all of them, though what is causal needs half."""
    return 2 * q[:-1].numel() * k[-2] * (q[-1] + v[-1])


def _attention_backward_flops(
    do: torch.Size, q: torch.Size, k: torch.Size, v: torch.Size, *_: object, **__: object
) -> int:
    """The scores again, and from each of the two products the gradients of its two sides."""
    return 2 * q[:-1].numel() * k[-2] * (3 * q[-1] + 2 * v[-1])


_ATTENTION = [
    getattr(torch.ops.aten, f"_scaled_dot_product_{kind}")
    for kind in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
]
_ALSO_COUNTED = {
    torch.ops.aten.linalg_solve_triangular: _solve_flops,
    torch.ops.aten.addmm_: _product_flops,
    torch.ops.aten.baddbmm_: _product_flops,
    **dict.fromkeys(_ATTENTION, _attention_flops),
    **{getattr(torch.ops.aten, f"{forward.__name__}_backward"): _attention_backward_flops for forward in _ATTENTION},
}


def library_versions(libraries: Sequence[str] | None = None) -> dict[str, str]:
    """Of these libraries, or those that bear on times; what is not installed is left out."""
    versions = {}
    for name in libraries or LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
