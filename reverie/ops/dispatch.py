"""The update rules with one signature, on a backend chosen by name: the table `RULES`, to which anybody may add one.

"chunked"    parallel form in plain torch, any device (the default); of a single token without gradients the closed form
"reference"  token by token: the specification
"triton"     one kernel forward and one backward for every 64 tokens; needs CUDA and triton
"fla"        the kernels of flash-linear-attention; needs CUDA and `pip install reverie[fla]`
"auto"       for CUDA tensors "triton" if one kernel is enough, else "fla" if it works; "chunked" otherwise, and
             "reference" where the rule has no other. Each choice is logged once
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.errors import UserError
from reverie.named import find_named, is_named
from reverie.ops import chunked, fla, one_token, reference, triton
from reverie.ops.constant import constant_when_compiled
from reverie.quiet import says_backends

logger = logging.getLogger("reverie")

Recurrence = Callable[..., tuple[Tensor | None, Tensor]]
"""A rule on one backend, with the arguments of `run_rule` but `rule` and `backend`; `scale` is a number by then."""

_RECURRENCES: dict[str, Recurrence] = {
    "chunked": chunked.recurrence,
    "reference": reference.recurrence,
    "fla": fla.recurrence,
    "triton": triton.recurrence,
}
BACKENDS = ("auto", *_RECURRENCES)


def _form(backend: str, *, erase: bool, decays: bool = True) -> Recurrence:
    """A rule of ours on a backend, which computes them all."""

    def run(q: Any, k: Any, v: Any, g: Any, beta: Any, **options: Any) -> tuple[Tensor | None, Tensor]:
        awake = backend == "chunked" and k.shape[1] == 1 and not torch.is_grad_enabled()
        recurrence = one_token.recurrence if awake else _RECURRENCES[backend]
        return recurrence(q, k, v, g if decays else None, beta, erase=erase, **options)

    return run


RULES: dict[str, dict[str, Recurrence]] = {
    "hebbian": {name: _form(name, erase=False) for name in _RECURRENCES},
    "delta": {name: _form(name, erase=True, decays=False) for name in _RECURRENCES},
    "gated_delta": {name: _form(name, erase=True) for name in _RECURRENCES},
}
"""Every rule's backends. "reference", token by token in plain torch, is the rule; the others are faster ways."""


def register_rule(name: str, reference: Recurrence, **faster: Recurrence) -> None:
    """Add an update rule, which recipes then name as `model.update_rule`.

    Args:
        reference: called with q [B, T, H, K] (or None: no output is wanted), k, v, g, beta, and with `initial_state`
            [B, H, K, V] (or None) and `scale` by name; returns o [B, T, H, V] (or None) and the final state
            [B, H, K, V] in float32 at least.
        faster: the same on other backends, by their names; those also take `chunk_size`.

    Raises:
        UserError: the name is taken, or a backend is not known.
    """
    if name in RULES:
        raise UserError(f"there is an update rule {name!r} already")
    if unknown := faster.keys() - set(BACKENDS[1:]):
        raise UserError(f"unknown backend {min(unknown)!r}: use one of {', '.join(BACKENDS[1:])}")
    RULES[name] = {"reference": _without_chunks(reference), **faster}


def find_rule(name: str) -> dict[str, Recurrence]:
    """The backends of a rule; one of "module:function", a reference, is imported and registered.

    Raises:
        UserError: there is none.
    """
    if name not in RULES:
        if not is_named(name):
            raise UserError(f"there is no update rule {name!r}: use {', '.join(RULES)}, or module:function")
        reference = find_named(name, "an update rule")
        if not callable(reference) or isinstance(reference, type):
            raise UserError(f"update rule {name} must be a function, got {reference!r}")
        register_rule(name, cast(Recurrence, reference))
    return RULES[name]


def _without_chunks(reference: Recurrence) -> Recurrence:
    return lambda *inputs, chunk_size=None, **options: reference(*inputs, **options)


@constant_when_compiled  # looks for packages and logs, which torch.compile cannot trace
def _choose(device_type: str, small: bool) -> str:
    """The backend that "auto" stands for; `small` if one "triton" kernel is enough."""
    choice, of = "chunked", ""
    if device_type == "cuda" and small and triton.installed():
        choice, of = "triton", f" of at most {triton.MAX_TOKENS} tokens"
    elif device_type == "cuda" and fla.installed() and not fla.miscompiled():
        choice = "fla"
    if says_backends():
        _log_choice(choice, device_type + " tensors" + of)
    return choice


@functools.cache
def _log_choice(choice: str, tensors: str) -> None:
    logger.warning("backend 'auto' runs the fast weights on %r for %s", choice, tensors)


def run_rule(
    rule: str,
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
) -> tuple[Float[Tensor, "B T H V"] | None, Float[Tensor, "B H K V"]]:
    """Run an update rule of the table `RULES`.

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

    Returns:
        o [B, T, H, V] in v's dtype, and the final state [B, H, K, V] in float32 (float64 for float64 inputs).
        Differentiable in every input and in the initial state.

    Raises:
        UserError: unknown rule or backend, one that the rule does not have, T = 0, chunk_size below 1, or "triton" or
            "fla" where they cannot run.
    """
    if backend not in BACKENDS:
        raise UserError(f"unknown backend {backend!r}: use one of {', '.join(BACKENDS)}")
    if k.shape[1] == 0:
        raise UserError("the update rules need at least one token, got T = 0")
    if chunk_size is not None and chunk_size < 1:
        raise UserError(f"chunk_size must be at least 1, got {chunk_size}")
    backends = find_rule(rule)
    if backend == "auto":
        backend = _choose(k.device.type, triton.in_one_kernel(k, v)) if len(backends) > 1 else "reference"
        backend = backend if backend in backends else "chunked" if "chunked" in backends else "reference"
    elif backend not in backends:
        raise UserError(f"update rule {rule!r} has no backend {backend!r}: use auto or one of {', '.join(backends)}")
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    # Under autocast the products inside would fall to bfloat16, and the memory with them.
    falls = k.device.type not in ("cpu", "cuda") or torch.is_autocast_enabled(k.device.type)
    with torch.autocast(k.device.type, enabled=False) if falls else contextlib.nullcontext():
        return backends[backend](q, k, v, g, beta, initial_state=initial_state, scale=scale, chunk_size=chunk_size)


def gated_delta_rule(
    q: Tensor | None, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, **options: Any
) -> tuple[Tensor | None, Tensor]:
    """Run the gated delta rule: decay, erase what is stored under the key, write (Gated DeltaNet, arXiv 2412.06464).

    Arguments and results are those of `run_rule`.
    """
    return run_rule("gated_delta", q, k, v, g, beta, **options)


def delta_rule(
    q: Tensor | None, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, **options: Any
) -> tuple[Tensor | None, Tensor]:
    """Run the delta rule: `gated_delta_rule` without decay. `g` is ignored; it makes the rules interchangeable."""
    return run_rule("delta", q, k, v, g, beta, **options)


def hebbian_rule(
    q: Tensor | None, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, **options: Any
) -> tuple[Tensor | None, Tensor]:
    """Run the hebbian rule: `gated_delta_rule` without erasing before it writes (paper equation 3; Mamba-2)."""
    return run_rule("hebbian", q, k, v, g, beta, **options)
