"""A `HybridLM` whose blocks compute in bfloat16, with parameters and their gradients in float32.

A pass over a window moves, forward and backward, so many bytes a parameter: 30 under autocast, since compiled blocks
turn every matrix to bfloat16 anew, and the backward does so again or finds 2 kept for each pass. Here that happens
once a step, and a pass moves 16; 12 of them add its gradient, which comes in bfloat16, to the sum in float32. To leave
that sum to autograd, in bfloat16, would make it 12, and lose digits with every window.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from reverie.model import HybridLM, LanguageModel, State
from reverie.model.fused import rms_norm

FLOAT32 = ("A_log", "dt_bias")  # what the decay is made of: vectors, and exponents


class _Lend(torch.autograd.Function):
    """Parameters as others compute with them: their copies. Gradients are added to the parameters' own at once."""

    @staticmethod
    def forward(ctx: Any, copies: list[Tensor], *parameters: nn.Parameter) -> tuple[Tensor, ...]:
        ctx.parameters = parameters
        return tuple(copy.detach() for copy in copies)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        for parameter, slope in zip(ctx.parameters, slopes, strict=True):
            if slope is not None:
                add_gradient(parameter, slope)
        return (None,) * (1 + len(slopes))


class _LookUp(torch.autograd.Function):
    """Rows of an embedding; the gradient touches no others."""

    @staticmethod
    def forward(ctx: Any, embedding: nn.Parameter, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.embedding, ctx.tokens = embedding, tokens
        return embedding[tokens].to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.embedding.grad is None:
            ctx.embedding.grad = torch.zeros_like(ctx.embedding)
        ctx.embedding.grad.index_add_(0, ctx.tokens.flatten(), slope.flatten(0, 1).to(ctx.embedding.dtype))
        return None, None, None


def add_gradient(parameter: nn.Parameter, slope: Tensor) -> None:
    """In the type of the parameter."""
    if parameter.grad is None:
        parameter.grad = slope.to(parameter.dtype, copy=True)
    else:
        parameter.grad.add_(slope)


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_(x.requires_grad)


class OnCopies(LanguageModel):
    """The same function in another number format. `head` returns what the head's matrix is multiplied with."""

    def __init__(self, model: HybridLM, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype
        self.layers = model.layers
        self._cut = False
        self._parameters_of = [
            {name: p for name, p in block.named_parameters() if name.rsplit(".", 1)[-1] not in FLOAT32}
            for block in model.layers
        ]
        self._copies = [{name: p.detach().to(dtype) for name, p in own.items()} for own in self._parameters_of]

    @torch.no_grad()
    def refresh(self) -> None:
        """To be called when the parameters have moved."""
        for own, copies in zip(self._parameters_of, self._copies, strict=True):
            for name, parameter in own.items():
                copies[name].copy_(parameter)

    @property
    def fast_weight_blocks(self) -> list[int]:
        return list(self.model.fast_weight_blocks)

    def embed(self, tokens: Tensor) -> Tensor:
        return _LookUp.apply(self.model.embedding.weight, tokens, self.dtype)  # pyright: ignore[reportReturnType]

    def blocks(
        self, h: Tensor, state: State, start: int, stop: int, *, span: int, output: bool = True
    ) -> tuple[Tensor, State]:
        fast_weights, cache = list(state.fast_weights), list(state.cache)
        for i in range(start, stop):
            own, copies = self._parameters_of[i], self._copies[i]
            lent: Any = _Lend.apply(list(copies.values()), *own.values())
            h, fast_weights[i], cache[i] = functional_call(
                self.layers[i],
                dict(zip(own, lent, strict=True)),
                (h, fast_weights[i], cache[i]),
                {"span": span, "output": output or i < stop - 1},
            )
            if self._cut:
                h, fast_weights[i], cache[i] = tree_map_only(Tensor, _leaf, (h, fast_weights[i], cache[i]))
        return h, State(tuple(fast_weights), tuple(cache))

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Blocks run as in training, so that they get compiled, and nothing is kept of them.

        A block in which the graph breaks, as it does around the update rule, must not be compiled in a pass that is
        made again: what its first run saves for the backward is not what later ones do (torch 2.13).
        """
        self._cut = True
        try:
            yield
        finally:
            self._cut = False

    def head(self, h: Tensor) -> Tensor:
        return rms_norm(h, self.model.config.norm_eps)
