"""Where the time of a call goes, by kind of kernel, from `torch.profiler`."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

from reverie.bench.card import Row

_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "linalg_solve_triangular")
_MOVES = ("copy", "cat", "index", "fill", "clone", "embedding", "constant_pad", "nonzero", "zero", "select_backward")
KINDS = ("matrix products", "attention", "moves and fills", "fused by compile", "other steps")


def kind_of(operation: str) -> str:
    """Of an operation as the profiler names it, such as "aten::baddbmm_"."""
    name = operation.removeprefix("aten::").strip("_")
    if name in _PRODUCTS:
        return "matrix products"
    if "scaled_dot_product" in name:
        return "attention"
    if name.removeprefix("_").startswith(_MOVES):
        return "moves and fills"
    return "fused by compile" if "CompiledFxGraph" in name else "other steps"


def time_by_kind(call: Callable[[], object], repeats: int = 5) -> Row:
    """Milliseconds a call by kind, on the profiler's clock, and the number of operations that took any."""
    call()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(repeats):
            call()
    row: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    operations = 0
    for event in found.key_averages():
        row[kind_of(event.key)] += event.self_cpu_time_total / 1e3 / repeats
        operations += event.count if event.key.startswith("aten::") and event.self_cpu_time_total else 0
    return {f"{kind.replace(' ', '_')}_ms": row[kind] for kind in KINDS} | {"operations": operations // repeats}
