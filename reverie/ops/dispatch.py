"""The three update rules with one signature, on a backend chosen by name.

"chunked"    parallel form in plain torch, any device (the default)
"reference"  token by token: the specification
"triton"     one kernel forward and one backward for every 64 tokens; needs CUDA and triton
"fla"        the kernels of flash-linear-attention; needs CUDA and `pip install reverie[fla]`
"auto"       for CUDA tensors "triton" if one kernel is enough, else "fla" if it works; "chunked" otherwise. Each choice
             is logged once
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.errors import UserError
from reverie.ops import chunked, fla, reference, triton
from reverie.ops.constant import constant_when_compiled

logger = logging.getLogger("reverie")

_RECURRENCES = {
    "chunked": chunked.recurrence,
    "reference": reference.recurrence,
    "fla": fla.recurrence,
    "triton": triton.recurrence,
}
BACKENDS = ("auto", *_RECURRENCES)


@constant_when_compiled  # looks for packages and logs, which torch.compile cannot trace
def _choose(device_type: str, small: bool) -> str:
    """The backend that "auto" stands for; `small` if one "triton" kernel is enough."""
    choice, of = "chunked", ""
    if device_type == "cuda" and small and triton.installed():
        choice, of = "triton", f" of at most {triton.MAX_TOKENS} tokens"
    elif device_type == "cuda" and fla.installed() and not fla.miscompiled():
        choice = "fla"
    _log_choice(choice, device_type + " tensors" + of)
    return choice


@functools.cache
def _log_choice(choice: str, tensors: str) -> None:
    logger.warning("backend 'auto' runs the fast weights on %r for %s", choice, tensors)


def gated_delta_rule(
    q: Float[Tensor, "B T H K"] | None,
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    g: Float[Tensor, "B T H"] | None,
    beta: Float[Tensor, "B T H"],
    *,
    initial_state: Float[Tensor, "B H K V"] | None = None,
    scale: float | None = None,
    backend: str = "chunked",
    chunk_size: int | None = None,
    erase: bool = True,
) -> tuple[Float[Tensor, "B T H V"] | None, Float[Tensor, "B H K V"]]:
    """Run the gated delta rule: decay, erase what is stored under the key, write (Gated DeltaNet, arXiv 2412.06464).

    Args:
        q: [B, T, H, K]; None if only the final state is wanted (o is None then).
        k: [B, T, H, K], of norm at most 1 (with β ≤ 1 the memory then stays bounded).
        v: [B, T, H, V].
        g: [B, T, H], log decay, at most 0; None for none.
        beta: [B, T, H], step size β, 0 to 1.
        initial_state: [B, H, K, V], the fast weights to start from; zero if None.
        scale: multiplies q; K^-1/2 if None.
        backend: see the module.
        chunk_size: tokens per tile of the "chunked" and "triton" backends; it changes the speed, not the result.
        erase: take away what is stored under the key before the write.

    Returns:
        o [B, T, H, V] in v's dtype, and the final state [B, H, K, V] in float32 (float64 for float64 inputs).
        Differentiable in every input and in the initial state.

    Raises:
        UserError: unknown backend, T = 0, chunk_size below 1, or "triton" or "fla" where they cannot run.
    """
    if backend not in BACKENDS:
        raise UserError(f"unknown backend {backend!r}: use one of {', '.join(BACKENDS)}")
    if k.shape[1] == 0:
        raise UserError("the update rules need at least one token, got T = 0")
    if chunk_size is not None and chunk_size < 1:
        raise UserError(f"chunk_size must be at least 1, got {chunk_size}")
    if backend == "auto":
        backend = _choose(k.device.type, triton.in_one_kernel(k, v))
    recurrence = functools.partial(_RECURRENCES[backend], initial_state=initial_state, chunk_size=chunk_size)
    # Under autocast the products inside would fall to bfloat16, and the memory with them.
    with torch.autocast(k.device.type, enabled=False):
        return recurrence(q, k, v, g, beta, scale=k.shape[-1] ** -0.5 if scale is None else scale, erase=erase)


def delta_rule(
    q: Tensor | None, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, **options: Any
) -> tuple[Tensor | None, Tensor]:
    """Run the delta rule: `gated_delta_rule` without decay. `g` is ignored; it makes the rules interchangeable."""
    return gated_delta_rule(q, k, v, None, beta, **options)


def hebbian_rule(
    q: Tensor | None, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, **options: Any
) -> tuple[Tensor | None, Tensor]:
    """Run the hebbian rule: `gated_delta_rule` without erasing before it writes (paper equation 3; Mamba-2)."""
    return gated_delta_rule(q, k, v, g, beta, erase=False, **options)
