"""Cross entropy behind a linear head, without the logits of all positions at once.

For 12,000 positions and a vocabulary of 49,152 they would take 2.4 GB in float32, and their gradient as much again.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS_AT_ONCE = 2**27  # half a gigabyte of float32; products of thousands of rows are as fast as larger ones


def linear_cross_entropy(
    h: Float[Tensor, "n D"],
    weight: Float[Tensor, "vocab D"],
    targets: Int[Tensor, " n"],
    *,
    compiled: bool = False,
    at_once: int = LOGITS_AT_ONCE,
) -> Float[Tensor, ""]:
    """Nats, summed over positions: F.cross_entropy(h @ weight.T, targets, reduction="sum"), in float32 at least.

    The gradients are made in the forward pass, while a chunk's logits are there, so no product is computed twice; they
    are those of `h` and `weight`, and differentiable no further. Products are in the type of `h`, or what autocast
    says; the sum over positions in weight's gradient is in float32.

    Args:
        compiled: the steps between the products go through torch.compile; they then move about a fifth of the bytes.
        at_once: logits that exist at a time.
    """
    device = h.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else h.dtype
    rows = max(at_once // len(weight), 1)
    return _LinearCrossEntropy.apply(h, weight, targets, dtype, rows, compiled)  # pyright: ignore[reportReturnType]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, rows: int, compiled: bool
    ) -> Tensor:
        accurate = torch.promote_types(dtype, torch.float32)
        step = _compiled_step() if compiled else nats_and_slopes
        loss, w = torch.zeros((), dtype=accurate, device=h.device), weight.to(dtype)
        needed = any(ctx.needs_input_grad)
        dh = torch.empty_like(h) if needed else None
        dw = torch.zeros_like(weight, dtype=accurate) if needed else None
        with torch.autocast(h.device.type, enabled=False):
            for start in range(0, len(h), rows):
                x = h[start : start + rows].to(dtype)
                nats, slopes = step(x @ w.T, targets[start : start + rows])
                loss = loss + nats  # a name of its own: see reverie/model/fused.py
                if dh is not None and dw is not None:
                    dh[start : start + rows] = slopes @ w
                    dw += slopes.T @ x
        ctx.save_for_backward(dh, dw)
        ctx.dtype = weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dh, dw = ctx.saved_tensors
        return dh * dloss.to(dh.dtype), (dw * dloss).to(ctx.dtype), None, None, None, None


def nats_and_slopes(
    logits: Float[Tensor, "rows vocab"], targets: Int[Tensor, " rows"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "rows vocab"]]:
    """The loss of some positions, summed, and its slopes in their logits: softmax, less 1 at the target."""
    log_p = F.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    nats = F.nll_loss(log_p, targets, reduction="sum")
    # A comparison, which fuses, where a scatter would not.
    is_target = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    return nats, (log_p.exp() - is_target.to(log_p.dtype)).to(logits.dtype)


@functools.cache
def _compiled_step() -> Any:
    return torch.compile(nats_and_slopes, dynamic=False)
