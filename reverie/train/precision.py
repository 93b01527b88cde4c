"""Which precision products are in, and where the low one is fast."""

import contextlib
from collections.abc import Iterator

import torch


def has_fast_bfloat16(device: torch.device | str) -> bool:
    """True if products of bfloat16 are at least as fast as those of float32: on GPUs, and on processors that have AMX
    or the bfloat16 instructions of AVX-512.

    Others compute them one by one, up to 70 times as slowly.
    """
    if torch.device(device).type != "cpu":
        return True
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))


@contextlib.contextmanager
def float32_products(dtype: str, device: torch.device | str) -> Iterator[None]:
    """Let a GPU compute float32 products in TF32 where most products are in bfloat16, which is less precise still."""
    before = torch.get_float32_matmul_precision()
    if dtype == "bfloat16" and torch.device(device).type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
