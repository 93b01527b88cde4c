"""The update rules as one CUDA kernel forward and one backward for every 64 tokens, one after the other.

They stand in `triton_kernels.py` and `triton_backward.py`. Here they become operators of PyTorch, whose shapes and
gradient are declared: `torch.compile` keeps them inside its graphs, and CUDA graphs capture them, since nothing in them
waits for the GPU.
"""

import importlib.util
import os
from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.errors import UserError
from reverie.ops.constant import constant_when_compiled

MAX_TOKENS = 64
MAX_KEY_SIZE = 256
# Of products of float32: "tf32" is what the tensor cores do, "ieee" is exact and many times slower.
PRECISION: Literal["tf32", "ieee"] = "tf32"


# What is installed does not change; torch.compile cannot trace how one finds out.
@constant_when_compiled
def installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@constant_when_compiled
def interpreted() -> bool:
    """True if Triton's own interpreter is asked for, which runs the kernels on CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


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
    chunk_size: int | None = None,
) -> tuple[Float[Tensor, "B T H V"] | None, Float[Tensor, "B H K V"]]:
    """As `reference.recurrence`. Products of float32 in TF32, of bfloat16 in bfloat16, summed in float32.

    Args:
        chunk_size: tokens of a kernel; as few kernels of 64 tokens as will do if None.

    Raises:
        UserError: triton is not installed, the tensors are not on a CUDA device or of float64, or K or the chunks are
            too large.
    """
    if not installed():
        raise UserError("backend 'triton' needs triton: pip install triton, or use 'chunked'")
    if k.device.type != "cuda" and not interpreted():
        raise UserError(f"backend 'triton' needs CUDA tensors, got {k.device.type}: use 'chunked' here")
    if (refusal := _refusal(k, v)) is not None:
        raise UserError(refusal)
    if chunk_size is not None and chunk_size > MAX_TOKENS:
        raise UserError(f"backend 'triton' takes chunks of at most {MAX_TOKENS} tokens, got chunk_size = {chunk_size}")
    T, S, outputs = k.shape[1], None if initial_state is None else initial_state.float(), []
    # As even as can be: two of 38 and 37 tokens rather than of 64 and 11.
    size = chunk_size or -(-T // -(-T // MAX_TOKENS))
    # `split`, not slices: the gradient of each slice would be zeros of full size, and theirs a sum quadratic in T.
    chunks = [[None] * -(-T // size) if x is None else x.split(size, dim=1) for x in (q, k, v, g, beta)]
    for chunk in zip(*chunks, strict=True):
        o, S, _ = _forward(*chunk, S, scale, erase)  # pyright: ignore[reportArgumentType]
        outputs.append(o)
    assert S is not None
    if q is None:
        return None, S
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), S


def in_one_kernel(k: Tensor, v: Tensor) -> bool:
    """True if one kernel takes tensors of this size and type, on a device where it runs."""
    return k.shape[1] <= MAX_TOKENS and _refusal(k, v) is None


def _refusal(k: Tensor, v: Tensor) -> str | None:
    K = k.shape[3]
    if torch.float64 in (k.dtype, v.dtype):
        return "backend 'triton' keeps the memory in float32, got float64: use 'chunked'"
    if K > MAX_KEY_SIZE:
        return f"backend 'triton' takes keys of size {MAX_KEY_SIZE} at most, got {K}: use 'fla' or 'chunked'"
    return None


@torch.library.custom_op("reverie::rule_on_window", mutates_args=())
def _forward(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    start: Tensor | None,
    scale: float,
    erase: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """o (empty without q), the final S, and (I + A)⁻¹ for the backward pass (empty for the hebbian rule)."""
    o, S, inverse = _outputs(q, k, v, g, beta, start, scale, erase)
    k, v = k.contiguous(), _rows(v)
    q, g, start = (None if x is None else x.contiguous() for x in (q, g, start))
    given = (q, k, v, g, beta.contiguous(), start, None if q is None else o, S, inverse if erase else None)
    _launch("forward", k, v, scale, given)
    return o, S, inverse


@_forward.register_fake
def _outputs(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    start: Tensor | None,
    scale: float,
    erase: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, H, K = k.shape
    float32 = {"dtype": torch.float32, "device": k.device}
    return (
        v.new_empty(v.shape if q is not None else (0,)),
        torch.empty(B, H, K, v.shape[-1], **float32),
        torch.empty((B, H, T, T) if erase else (0,), **float32),
    )


@torch.library.custom_op("reverie::rule_on_window_backward", mutates_args=())
def _backward(
    do: Tensor | None,
    dS: Tensor | None,
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    start: Tensor | None,
    inverse: Tensor,
    scale: float,
    erase: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v, g, β and the first S; empty where there is none."""
    gradients = _gradients(do, dS, q, k, v, g, beta, start, inverse, scale, erase)
    k, v, beta = k.contiguous(), _rows(v), beta.contiguous()
    q, g, start, do, dS = (None if x is None else x.contiguous() for x in (q, g, start, do, dS))
    written = (x if x.numel() else None for x in gradients)
    given = (
        q if do is not None else None,
        k,
        v,
        g,
        beta,
        start,
        inverse if erase else None,
        do,
        dS,
        *written,
        torch.empty_like(gradients[2]),
    )
    _launch("backward", k, v, scale, given)
    return gradients


@_backward.register_fake
def _gradients(
    do: Tensor | None,
    dS: Tensor | None,
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    start: Tensor | None,
    inverse: Tensor,
    scale: float,
    erase: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    def like(x: Tensor | None) -> Tensor:
        return k.new_empty(0) if x is None else x.new_empty(x.shape)

    return like(q if do is not None else None), like(k), like(v), like(g), like(beta), like(start)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.erase = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _through(ctx: Any, do: Tensor | None, dS: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    do = None if tensors[0] is None else do
    gradients = _backward(do, dS, *tensors, ctx.scale, ctx.erase)
    needed = (x if wanted and x.numel() else None for x, wanted in zip(gradients, ctx.needs_input_grad, strict=False))
    return *needed, None, None


_forward.register_autograd(_through, setup_context=_save)


def _rows(v: Tensor) -> Tensor:
    """v with its heads side by side: v itself, also where it is a slice of a wider projection."""
    return v if v.stride()[2:] == (v.shape[-1], 1) else v.contiguous()


def _launch(name: Literal["forward", "backward"], k: Tensor, v: Tensor, scale: float, given: Iterable[Any]) -> None:
    from reverie.ops import triton_backward, triton_kernels  # not before they are needed: Triton may be missing

    B, T, H, K = k.shape
    V = v.shape[-1]
    kernel: Any = triton_kernels.forward if name == "forward" else triton_backward.backward
    with torch.cuda.device_of(k):  # Triton launches on the current one
        kernel[(B * H,)](
            *given,
            *v.stride()[:2],
            scale,
            T,
            H=H,
            K=K,
            V=V,
            **triton_kernels.operands(torch.promote_types(k.dtype, v.dtype), PRECISION),
            **triton_kernels.tiles(name, T, K, V),
        )
