"""The update rules on the GPU kernels of flash-linear-attention (`pip install reverie[fla]`)."""

from __future__ import annotations

import importlib.util

from jaxtyping import Float
from torch import Tensor

from reverie.errors import UserError


def recurrence(
    q: Float[Tensor, "B T H K"] | None,
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    g: Float[Tensor, "B T H"] | None,
    beta: Float[Tensor, "B T H"],
    *,
    initial_state: Float[Tensor, "B H K V"] | None,
    scale: float,
    erase: bool,
    chunk_size: int | None = None,  # the kernels choose their own
) -> tuple[Float[Tensor, "B T H V"] | None, Float[Tensor, "B H K V"]]:
    """As `reference.recurrence`.

    Always the chunk kernels: the fused recurrent ones have no backward through the gated delta rule.

    Raises:
        UserError: fla-core is not installed, or the tensors are not on a CUDA device.
    """
    if importlib.util.find_spec("fla") is None:
        raise UserError("backend 'fla' needs flash-linear-attention: pip install 'reverie[fla]', or use 'chunked'")
    if k.device.type != "cuda":
        raise UserError(f"backend 'fla' needs CUDA tensors, got {k.device.type}: use 'chunked' here")
    kernel_q = k if q is None else q  # the kernels always read
    state = {"scale": scale, "initial_state": initial_state, "output_final_state": True}
    if not erase:
        from fla.ops.simple_gla import chunk_simple_gla  # pyright: ignore[reportMissingImports]

        o, S = chunk_simple_gla(kernel_q, k, v * beta[..., None].to(v.dtype), g=g, **state)
    else:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule  # pyright: ignore[reportMissingImports]

        # The delta rule too, as the gated one without decay: fla's kernel for it refuses float32.
        g = beta.new_zeros(beta.shape) if g is None else g
        o, S = chunk_gated_delta_rule(kernel_q, k, v, g=g, beta=beta, **state)
    return None if q is None else o, S
