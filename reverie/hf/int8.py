"""Tokens awake with weights in int8: products of a single row by torch's dynamic quantisation.

Weights are rounded to 8 bits with a scale for each output, and the row to 8 bits with one scale. Rows share that scale
where there are several, so each would depend on the others: several rows, as texts are read in, go on in float32.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reverie.errors import UserError
from reverie.hf.blocks import is_inserted
from reverie.hf.models.hybrid import ReverieHybridForCausalLM


def quantize_awake(model: PreTrainedModel) -> PreTrainedModel:
    """Compute products of a single row in int8 from now on, in place: those of a token that is written or read alone.

    Of the model's own linear layers and its head; inserted layers, norms and embeddings stay as they are. All weights
    stay, and what `save_pretrained` writes: float32. Several tokens at a time, and several texts, go on as before.

    A memory says that it was made in int8; one of the float32 model loads with approximate=True.

    Raises:
        UserError: the model is no model of transformers, is compiled, is spread over devices, has no linear layer in
            float32 on the CPU, or this torch has no int8 products.
    """
    _check(model)
    packed = dict[Any, Packed]()
    for layer in _layers(model):
        packed[layer] = Packed()
        try:
            packed[layer].of(layer)
        except (RuntimeError, AttributeError) as error:
            raise UserError(f"torch {torch.__version__} has no int8 products here ({error})") from error
    for layer, weights in packed.items():
        layer.__class__, layer.int8 = Int8Linear, weights
    return model


_OWN = {"weight", "bias"}


class Packed:
    """The weights of a layer in int8, as torch's kernels take them; made anew where the layer's own have changed.

    Writing through `.data`, as peft does to merge an adapter, leaves no trace but in the numbers. Some 128 of them are
    looked at, on both diagonals: edits of a whole matrix, or of a third of its rows or columns, are seen, and of single
    numbers not always.
    """

    def __init__(self) -> None:
        self._weights: Any = None
        self._made_of: tuple[Any, ...] = ()
        self._some, self._numbers = list[Any](), list[bytes]()

    def of(self, layer: nn.Linear) -> Any:
        own = layer._parameters  # which attributes of a module take ten times as long to find
        weight, bias = (own["weight"], own["bias"]) if own.keys() == _OWN else (layer.weight, layer.bias)
        assert weight is not None
        now = _mark(weight) if bias is None else (*_mark(weight), *_mark(bias))
        if now != self._made_of or [x.tobytes() for x in self._some] != self._numbers:
            weight = weight.detach()
            self._weights, self._made_of = _packed(weight, bias), now
            self._some = [x.numpy() for x in _some_of(weight)]
            self._numbers = [x.tobytes() for x in self._some]
        return self._weights

    def __reduce__(self) -> Any:
        return Packed, ()  # a copy packs its own


class Int8Linear(nn.Linear):
    """A linear layer whose weights are float32, and whose products with a single row are of int8."""

    stands_for = nn.Linear  # to memories, which see the kernels
    kernels = "int8 products"
    int8: Packed

    def forward(self, input: Tensor) -> Tensor:
        if input.numel() != input.shape[-1] or input.dtype != torch.float32 or not input.is_cpu:
            return super().forward(input)
        if torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad):
            raise UserError("products in int8 have no gradients: call the model under torch.no_grad()")
        if not _is_finite(input):  # such a row has no scale, and would come to some numbers or other
            return super().forward(input)
        return torch.ops.quantized.linear_dynamic(input, self.int8.of(self), _REDUCED)


def _is_finite(row: Tensor) -> bool:
    """True if all numbers are; found out once for all layers that read the same tensor."""
    now = None if row.is_inference() else _mark(row)  # a copy has other places
    if now is not None and getattr(row, "is_finite_at", None) == now:
        return True
    finite = math.isfinite(row.sum().item())
    if finite:
        row.is_finite_at = now  # pyright: ignore[reportAttributeAccessIssue]
    return finite


def _mark(x: Tensor) -> tuple[int, ...]:
    """What changes with a tensor, unless it is written through `.data`; no other has it while its numbers are kept."""
    return x.data_ptr(), -1 if x.is_inference() else x._version


def _some_of(weight: Tensor) -> list[Tensor]:
    """Views of runs of 16 numbers in four places of each diagonal, from end to end: a run costs no more time than one
    number that is not cached."""
    (rows, columns), (down, right) = weight.shape, weight.stride()
    places, run = min(4, rows), min(16, columns)
    below, beside = ((size - 1) // max(places - 1, 1) for size in (rows, columns - run + 1))
    first = weight.storage_offset()
    return [
        weight.as_strided((places, run), (below * down + beside * right, right), first),
        weight.as_strided((places, run), (below * down - beside * right, right), first + beside * (places - 1) * right)
        if below * down >= beside * right
        else weight[:1, -run:],
    ]


def _few_bits() -> bool:
    """True where a row keeps 7 bits: without VNNI the kernels of x86 add up two products in 16 bits."""
    found = torch.cpu.get_capabilities()
    return found["architecture"] == "x86_64" and not (found.get("avx512_vnni") or found.get("avx_vnni"))


_REDUCED = _few_bits()


def _packed(weight: Tensor, bias: Tensor | None) -> Any:
    scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such tensors are to go, some day
        rounded = torch.quantize_per_channel(weight, scale.double(), torch.zeros(len(scale)).long(), 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(rounded, None if bias is None else bias.detach())


def _layers(model: nn.Module) -> Iterator[Any]:
    return (
        module for name, module in model.named_modules() if type(module) is nn.Linear and not is_inserted(f"{name}.")
    )


def _check(model: object) -> None:
    if not isinstance(model, PreTrainedModel) or isinstance(model, ReverieHybridForCausalLM):
        name = type(model).__name__
        raise UserError(f"int8 is for models of transformers, whose weights are large, and this is a {name}")
    if any(getattr(module, "attend", None) is not None for module in model.modules()):
        raise UserError("the model is compiled, which does not go with int8: use one of both")
    if any("forward" in vars(module) for module in cast(nn.Module, model).modules()):
        raise UserError("the model is spread over devices, which does not go with int8: load it without device_map")
    layers = list(_layers(model))
    if not layers and not any(isinstance(module, Int8Linear) for module in model.modules()):
        raise UserError(f"there is no linear layer in {type(model).__name__} that int8 could be the products of")
    for layer in layers:
        if layer.weight.device.type != "cpu":
            raise UserError(f"int8 products are computed on the CPU alone, and the model is on {layer.weight.device}")
        if layer.weight.dtype != torch.float32:
            dtype = str(layer.weight.dtype).removeprefix("torch.")
            raise UserError(f"int8 products are of a model in float32, and this one is in {dtype}")
