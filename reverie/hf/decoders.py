"""Which models of transformers can sleep, and what their decoders are made of."""

import copy
import inspect
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicCache, LinearAttentionCacheLayerMixin
from transformers.modeling_layers import GradientCheckpointingLayer

from reverie.errors import UserError

HYBRIDS = (
    "qwen3_next",
    "qwen3_5_text",
    "olmo_hybrid",
    "kimi_linear",
    "bamba",
    "granitemoehybrid",
    "falcon_h1",
    "nemotron_h",
    "jet_nemotron",
)
"""Tested types with fast weights of their own."""

TRANSFORMERS = ("llama", "qwen2", "qwen3", "ouro")
"""Tested types without; they take inserted ones."""

CANNOT = {
    "jamba": "its Mamba layers go on from earlier tokens one token at a time only",
    "mamba": "it has no attention, so no window of its own to clear",
    "mamba2": "it has no attention, so no window of its own to clear",
    "zamba": "its Mamba layers go on from earlier tokens one token at a time only",
    "zamba2": "its attention blocks read the embeddings beside h, which a pass of sleep no longer has",
    "lfm2_moe": "its convolutions hold a few tokens, and no fast weights",
    "lfm2": "its convolutions hold a few tokens, and no fast weights",
    "recurrent_gemma": "its recurrent blocks keep their state inside of modules",
    "rwkv": "its state does not go through transformers' cache",
    "minimax": "its linear attention does not keep its state as a layer of transformers' cache",
}
"""Types whose code was looked at, and why not."""


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a causal language model that runs its blocks."""
    return getattr(model, model.base_model_prefix, model)


def check_decoder(model: PreTrainedModel, decoder: PreTrainedModel) -> nn.ModuleList:
    """The decoder's blocks. Raises UserError if the model cannot sleep."""
    kind, name = model.config.model_type, type(model).__name__
    if kind in CANNOT:
        raise UserError(f"{name} ({kind}) cannot sleep: {CANNOT[kind]}")
    if model.config.is_encoder_decoder or decoder is model or not model.can_generate():
        raise UserError(
            f"{name} cannot sleep: it takes a decoder with a language-modelling head (AutoModelForCausalLM)"
        )
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not all(
        isinstance(layer, GradientCheckpointingLayer) for layer in layers
    ):
        raise UserError(
            f"{name} ({kind}) cannot sleep: its decoder has no plain list of blocks. Tested types: "
            + ", ".join((*HYBRIDS, *TRANSFORMERS))
        )
    if any("position" in child for child, _ in decoder.named_children()):
        raise UserError(f"{name} ({kind}) cannot sleep: it adds learned positions before its blocks")
    if any("past_key_values" not in inspect.signature(type(layer).forward).parameters for layer in layers):
        raise UserError(f"{name} ({kind}) cannot sleep: its blocks do not take the cache as past_key_values")
    _check_said(name, decoder, layers)
    steps = getattr(model.config, "total_ut_steps", 1)
    if steps != 1:
        raise UserError(
            f"{name} runs its stack {steps} times awake: load it with total_ut_steps=1, "
            "since passes of sleep take the place of its loop"
        )
    return layers


def said_of_blocks(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """What a config says of each block by itself, such as its type, by which a decoder chooses masks and positions."""
    names = ["layer_types", "layers_block_type", *(name for name in vars(config) if "layer" in name)]
    known = {name: getattr(config, name, None) for name in names}
    n = config.num_hidden_layers
    lists = {name: x for name, x in known.items() if isinstance(x, list | tuple) and len(x) == n}
    return [{name: x[i] for name, x in lists.items()} for i in range(n)]


def _check_said(name: str, decoder: PreTrainedModel, layers: nn.ModuleList) -> None:
    """Raises UserError if the config describes other blocks than there are."""
    count = decoder.config.num_hidden_layers
    if len(layers) != count:
        raise UserError(f"{name} has {len(layers)} blocks, and its config.num_hidden_layers is {count}: set it")
    if len({*(getattr(decoder.config, "layer_types", None) or ())}) < 2:
        return
    with torch.device("meta"):
        fresh: Any = type(decoder)(copy.deepcopy(decoder.config))
    for i, (layer, like) in enumerate(zip(layers, fresh.layers, strict=True)):
        own, wanted = ({key: type(x).__name__ for key, x in block.named_children()} for block in (layer, like))
        if own != wanted:
            raise UserError(f"block {i} of {name} is another than its config.layer_types say: set them")


def block_kinds(decoder: PreTrainedModel, num_blocks: int) -> list[tuple[bool, bool]]:
    """For each block, whether it attends and whether it is recurrent, by the cache that transformers makes for it."""
    layers = DynamicCache(config=decoder.config).layers
    if not layers:  # made as they are used, all for attention
        return [(True, False)] * num_blocks
    return [(isinstance(x, CacheLayerMixin), isinstance(x, LinearAttentionCacheLayerMixin)) for x in layers]


def final_norm(decoder: PreTrainedModel, layers: nn.ModuleList) -> str | None:
    """The name of the decoder's norm after its last block, if that is all it does there; None where it may do more."""
    around = (layers, decoder.get_input_embeddings())
    rest = [
        name
        for name, child in decoder.named_children()
        if child not in around and next(child.parameters(), None) is not None
    ]
    norms = [name for name in rest if "norm" in name]
    known = decoder.config.model_type in (*HYBRIDS, *TRANSFORMERS)
    return norms[0] if len(norms) == 1 and (known or len(rest) == 1) else None
