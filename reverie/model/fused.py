"""Chains of small elementwise steps as single autograd functions.

Small models on CPU are bound by such steps, not by matrix products; written out, forward and backward, they take about
half the kernels that autograd would launch and store less. Each docstring has the formula.
"""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

# autograd.Function is not typed: its staticmethods take the ctx that PyTorch makes.
#
# What `forward` returns must not be a second name of a tensor, as is the result of an in-place step, or of `.to` or
# `.contiguous` where they do nothing: compiled by torch 2.11 it has no gradient, and nothing says so.


def _normalised(x: Tensor, size: float, eps: float) -> tuple[Tensor, Tensor]:
    """`normalise`, and the factor."""
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_accurate(x)).square_()
    inverse = square.add_(eps).rsqrt_().mul_(size)
    y = x * inverse
    return y if y.dtype == x.dtype else y.to(x.dtype), inverse  # see above


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: float, eps: float) -> Tensor:
        y, inverse = _normalised(x, size, eps)
        ctx.save_for_backward(y, inverse)
        ctx.size = size
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        y, inverse = ctx.saved_tensors
        along = (dy * y).sum(-1, keepdim=True, dtype=inverse.dtype).mul_(-1 / ctx.size**2)
        return torch.addcmul(dy, y, along.to(y.dtype)).mul_(inverse.to(y.dtype)), None, None


def _of_a_token(x: Tensor, size: float, eps: float) -> Tensor:
    """`normalise` in the fewest steps: two or three on a CPU, where F.rms_norm is seven."""
    if x.is_cpu and _is_computed():
        if x.numel() == x.shape[-1] and x.dtype == torch.float32:
            row = x.view(-1)
            length = math.sqrt(torch.dot(row, row).item() + eps)
            return x * (size / length if length else math.inf)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_accurate(x))
        length = torch.hypot(length, _number(eps**0.5))
        y = x / length if size == 1 else torch.addcdiv(_number(0.0), x, length, value=size)
        return y if y.dtype == x.dtype else y.to(x.dtype)
    n = x.shape[-1]
    y = F.rms_norm(x, (n,), eps=eps / n)
    return y if size == n**0.5 else y * (size / n**0.5)


def _is_computed() -> bool:
    """True if calls have numbers at once: nothing traces, maps or differentiates them."""
    seen = torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack()  # pyright: ignore[reportAttributeAccessIssue]
    tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return not (seen or tracing or torch.compiler.is_compiling())


@functools.cache
def _number(x: float) -> Tensor:
    """As a tensor without dimensions, which takes the type of those it meets."""
    return torch.tensor(x, dtype=torch.float64, device="cpu")


def normalise(x: Float[Tensor, "*B X"], size: float, eps: float = 1e-6) -> Float[Tensor, "*B X"]:
    """Return x · size / √(‖x‖² + eps) over the last axis: x scaled to length `size`."""
    if not torch.is_grad_enabled():  # an autograd function of a single token takes longer than the steps in it
        return _of_a_token(x, size, eps) if x.shape[1:2] == (1,) else _normalised(x, size, eps)[0]
    return _Normalise.apply(x, size, eps)  # pyright: ignore[reportReturnType]


def rms_norm(x: Float[Tensor, "*B X"], eps: float = 1e-6) -> Float[Tensor, "*B X"]:
    """RMSNorm over the last axis, without a gain: the matrix that follows holds it."""
    return normalise(x, x.shape[-1] ** 0.5, eps * x.shape[-1])


def _silu_backward(dy: Tensor, sigmoid: Tensor, silu: Tensor) -> Tensor:
    """Return dy · (σ + s (1 − σ)) with s = silu(x) and σ = sigmoid(x), without an exponential. Overwrites dy."""
    return dy.mul_(torch.addcmul(sigmoid, silu, sigmoid, value=-1).add_(silu))


def _convolved(extended: Tensor, weight: Tensor) -> Tensor:
    T = extended.shape[1] - len(weight) + 1
    mixed = extended[:, :T] * weight[0]
    for i in range(1, len(weight)):
        mixed.addcmul_(extended[:, i : i + T], weight[i])
    return mixed


class _CausalConvSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, extended: Tensor, weight: Tensor) -> Tensor:
        mixed = _convolved(extended, weight)
        sigmoid = mixed.sigmoid()
        silu = mixed * sigmoid
        ctx.save_for_backward(extended, weight, sigmoid, silu)
        return silu

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        extended, weight, sigmoid, silu = ctx.saved_tensors
        T = sigmoid.shape[1]
        dmixed = _silu_backward(dy.clone(), sigmoid, silu)
        dextended, dweight = torch.zeros_like(extended), torch.empty_like(weight)
        for i in range(len(weight)):
            dextended[:, i : i + T].addcmul_(dmixed, weight[i])
            dweight[i] = (dmixed * extended[:, i : i + T]).sum((0, 1))
        return dextended, dweight


def causal_conv_silu(
    extended: Float[Tensor, "B E C"], weight: Float[Tensor, "conv_size C"]
) -> Float[Tensor, "B E-conv_size+1 C"]:
    """Depthwise causal convolution and SiLU: y_t = silu(Σ_i weight_i · extended_{t+i}).

    `extended` is x after the conv_size − 1 inputs before it, as `fast_weights.with_tail` returns it.
    """
    if not torch.is_grad_enabled():
        if extended.shape[1] == len(weight):
            return F.silu((extended * weight).sum(1, keepdim=True))
        mixed = _convolved(extended, weight)
        return mixed.sigmoid().mul_(mixed)
    return _CausalConvSilu.apply(extended, weight)  # pyright: ignore[reportReturnType]


def _accurate(x: Tensor) -> torch.dtype:
    """float32, or x's dtype if that is wider."""
    return x.dtype if x.dtype == torch.float32 else torch.promote_types(x.dtype, torch.float32)
