"""Low-rank updates (LoRA, arXiv 2106.09685) of some blocks of a model, by peft; and the model as it is with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from reverie.errors import UserError
from reverie.hf.blocks import is_inserted
from reverie.hf.decoder import sleeping_decoder


def add_lora(model: PreTrainedModel, blocks: Sequence[tuple[int, int]], rank: int) -> None:
    """Give the linear layers of blocks [a, b) updates of this rank, which are zero at first, in place.

    Raises:
        UserError: peft is not installed, or there are no such layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("low-rank updates need the package peft; run pip install peft") from None
    layers = sleeping_decoder(model).layers
    for a, b in blocks:
        if not 0 <= a < b <= len(layers):
            raise UserError(f"lora_blocks has {[a, b]}, but the model has {len(layers)} blocks")
    wanted = {id(m) for a, b in blocks for block in layers[a:b] for m in block.modules()}
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in wanted and not is_inserted(f"{name}.")
    ]
    if not names:
        raise UserError(f"blocks {list(blocks)} of {type(model).__name__} have no linear layers to update")
    before = model.state_dict().keys()
    other = f"{type(model).__name__} has layers that peft updates otherwise: train whole blocks, adapt.trained_blocks"
    try:
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), model)
    except ValueError as error:
        raise UserError(f"{other} ({error})") from error
    if merged_state(model).keys() != before:
        raise UserError(other)


def merged_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's tensors with all low-rank updates added, by the names that they have without any."""
    updated: dict[str, Any] = {
        f"{name}.base_layer.weight": module for name, module in model.named_modules() if hasattr(module, "lora_A")
    }
    state = {}
    for name, tensor in model.state_dict().items():
        if ".lora_" not in name:
            added = updated[name].get_delta_weight("default").to(tensor.dtype) if name in updated else None
            state[name.replace(".base_layer.", ".")] = tensor if added is None else tensor + added
    return state
