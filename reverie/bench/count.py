"""Counts of what a call does: its matrix products, and the bytes that it holds at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

# Operations


def count_flops(call: Callable[[], object]) -> int:
    """Multiplications and additions of the matrix products, triangular solves and attention that a call runs."""
    with flop_counter() as counter:
        call()
    return counter.get_total_flops()


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, which by itself leaves out some of these operations, and in torch 2.11 grouped heads."""
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

# Bytes


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made under it that are alive, on any device; tensors with one storage count once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        there_before = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in there_before and storage._cdata not in self._live:
                self._live[storage._cdata] = storage.nbytes()
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self._remove, storage._cdata)
        self.peak = max(self.peak, self.bytes)
        return result

    def _remove(self, key: int) -> None:
        self.bytes -= self._live.pop(key)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def tensor_bytes(tree: Any) -> int:
    """Bytes that the tensors in a tree keep alive; what several share counts once."""
    return sum({storage.data_ptr(): storage.nbytes() for storage in _storages(tree)}.values())
