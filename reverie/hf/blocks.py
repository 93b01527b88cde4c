"""Blocks of a decoder of transformers that read and write the state of a call, and the layers inserted after them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reverie.errors import UserError
from reverie.hf.compiled import Attend
from reverie.hf.state import StateCache
from reverie.model import ConvTail

INSERTED, INJECTION = "fast_weight_mixer", "sleep_injection"


class InsertConfig(NamedTuple):
    """The layers that one call of `insert_fast_weights` inserted; sizes as in `HybridConfig`."""

    after: tuple[int, ...]  # indices of the blocks that such a layer follows
    kind: str  # of mixer
    fast_heads: int
    key_size: int
    value_size: int
    conv_size: int = 4
    value_embedding: bool = False
    settings: Mapping[str, Any] | None = None  # of the mixer's own


def inserted_mixer(layer: nn.Module) -> nn.Module | None:
    """The layer that `insert_fast_weights` put after a decoder's block."""
    return layer._modules.get(INSERTED)


def inserted_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of inserted layers and of what passes of sleep read, by name."""
    return {name: p for name, p in model.named_parameters() if is_inserted(name)}


def is_inserted(name: str) -> bool:
    """True if a parameter of this name belongs to an inserted layer, or to what passes of sleep read."""
    return any(f".{place}." in f".{name}" for place in (INSERTED, INJECTION))


def holds_fast_weights(block: nn.Module) -> bool:
    return getattr(block, "recurrent", False) or inserted_mixer(block) is not None


class SleepingBlock(nn.Module):
    """Mixed in before the class of a decoder's block. It reads the `StateCache` of the call, and writes into it."""

    stock: type[nn.Module]  # its class without this one
    said: dict[str, Any]  # what the config said of it when it was made to sleep
    attends: bool
    recurrent: bool  # it has fast weights of its own
    attend: Attend | None  # how it runs if it was compiled

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        call = kwargs.get("past_key_values")
        if not isinstance(call, StateCache):
            raise TypeError("a block of a sleeping model runs through reverie alone")
        index = call.enter()
        if index == call.start and call.h is not None:
            hidden_states = call.h.to(hidden_states.device)  # blocks may be on several devices
        elif index == 0:
            call.embedded = hidden_states
        if self.attends:
            kwargs["attention_mask"] = call.narrowed(kwargs.get("attention_mask"), hidden_states)
        if self.attend is None:
            output = super().forward(hidden_states, *args, **kwargs)
        else:
            entry, kwargs = call.entries[index], {key: x for key, x in kwargs.items() if key != "past_key_values"}
            output, k, v = self.attend(self, hidden_states, entry.k, entry.v, kwargs)
            call.entries[index] = entry._replace(k=k, v=v)
        h = output[0] if isinstance(output, tuple) else output
        if (inserted := inserted_mixer(self)) is not None:
            h = _write(inserted, h, call)
        call.passed(h)
        return (h, *[None] * (len(output) - 1)) if isinstance(output, tuple) else h

    def __getstate__(self) -> dict[str, Any]:
        """Without its compiled form, as torch does it."""
        return {**super().__getstate__(), "attend": None}


def _write(inserted: nn.Module, h: Tensor, call: StateCache) -> Tensor:
    """h [B, T, D] after the layer inserted after the block that runs, which reads and writes its place in the call."""
    index = call.index
    entry = call.entries[index]
    tail = ConvTail(entry.conv[0]) if entry.conv and entry.conv[0] is not None else None
    more = {"windows": call.windows} if call.windows > 1 else {}
    h, call.fast_weights[index], tail = inserted(h, call.fast_weights[index], tail, call.embedded, **more)
    if not isinstance(tail, ConvTail | None):
        raise UserError(f"an inserted mixer may keep a ConvTail or nothing, and this one keeps a {type(tail).__name__}")
    call.entries[index] = entry._replace(conv=() if tail is None else (tail.x,))
    return h


class Skipped:
    """Stands for a block that a call leaves out: it hands on what the decoder embedded, or the h of the call."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)  # a decoder may ask of which type a block is

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        call: StateCache = kwargs["past_key_values"]
        call.enter()
        if call.h is None:
            call.h = hidden_states
        return call.h.detach().as_subclass(_Either)


class _Either(Tensor):
    """h for a decoder whose blocks return it, and for one whose blocks return a pair that begins with it."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    def __iter__(self) -> Any:
        return iter((self, None))

    def __getitem__(self, index: Any) -> Any:
        return self if isinstance(index, int) and index == 0 else super().__getitem__(index)


def check_blocks(decoder: Any) -> None:
    """Check that a forward of a `SleepingDecoder` would run all of its blocks, each as what it is.

    Blocks may be taken out, repeated or moved: a block's place is the one that it has when it is called.

    Raises:
        UserError: there are blocks that cannot sleep, or that do not fit the config.
    """
    name, config = type(decoder).__name__, decoder.config
    if len(decoder.layers) > config.num_hidden_layers:
        raise UserError(
            f"{name} has {len(decoder.layers)} blocks, and its config.num_hidden_layers is {config.num_hidden_layers}: "
            "set it, or the others would not run"
        )
    for i, block in enumerate(decoder.layers):
        if not isinstance(block, SleepingBlock):
            raise UserError(f"block {i} of {name} cannot sleep: put blocks into a model before it can sleep, not after")
        for key, value in block.said.items():
            if list(getattr(config, key))[i : i + 1] != [value]:
                raise UserError(
                    f"block {i} of {name} was made with {value} of config.{key}, which says otherwise: set it"
                )
