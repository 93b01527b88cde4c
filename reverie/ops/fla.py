"""The update rules on the GPU kernels of flash-linear-attention (`pip install reverie[fla]`)."""

import importlib.metadata
import importlib.util

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.errors import UserError
from reverie.ops.constant import constant_when_compiled


@constant_when_compiled  # torch.compile cannot trace the look-up
def installed() -> bool:
    """True if flash-linear-attention is installed."""
    return importlib.util.find_spec("fla") is not None


@constant_when_compiled
def miscompiled() -> str:
    """The installed version of triton if fla's gated kernels have wrong gradients with it on this GPU, else "".

    On Hopper that is so from 3.4 until before 3.7.1 (flash-linear-attention#640). fla then raises in the backward pass,
    unless tilelang is installed, which it uses instead.
    """
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        return ""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return ""
    wrong = (3, 4, 0) <= tuple(int(part) for part in version.split("+")[0].split(".")[:3]) < (3, 7, 1)
    return version if wrong and importlib.util.find_spec("tilelang") is None else ""


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
    """Run a rule as `reference.recurrence` does, always on the chunk kernels.

    The fused recurrent kernels have no backward through the gated delta rule.

    Raises:
        UserError: fla-core is not installed, the tensors are not on a CUDA device, or the gradients would be wrong.
    """
    if not installed():
        raise UserError("backend 'fla' needs flash-linear-attention: pip install 'reverie[fla]', or use 'chunked'")
    if k.device.type != "cuda":
        raise UserError(f"backend 'fla' needs CUDA tensors, got {k.device.type}: use 'chunked' here")
    if (version := miscompiled()) and (erase or g is not None) and torch.is_grad_enabled():
        raise UserError(
            f"backend 'fla' has wrong gradients on Hopper GPUs with triton {version}: install triton 3.7.1 or later or "
            "tilelang, or use 'triton' or 'chunked'"
        )
    kernel_q = k if q is None else q  # the kernels always read
    state = {"scale": scale, "initial_state": initial_state, "output_final_state": True}
    if not erase:
        from fla.ops.simple_gla import chunk_simple_gla  # pyright: ignore[reportMissingImports]

        o, S = chunk_simple_gla(kernel_q, k, v * beta[..., None].to(v.dtype), g=g, **state)  # pyright: ignore[reportCallIssue]
    else:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule  # pyright: ignore[reportMissingImports]

        # The plain delta rule is run as the gated one without decay: fla's kernel for it refuses float32.
        g = beta.new_zeros(beta.shape) if g is None else g
        o, S = chunk_gated_delta_rule(kernel_q, k, v, g=g, beta=beta, **state)  # pyright: ignore[reportCallIssue]
    return None if q is None else o, S
