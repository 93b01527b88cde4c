"""`insert_fast_weights`: Gated DeltaNet or Jet layers for a transformer that has no fast weights.

A new layer stands behind a decoder block: h ← h + mixer(norm(h)), without an MLP (paper section 6.4, Ouro). Its output
projection starts at zero, so the model computes bit for bit what it did before; what it writes and looks up starts as
what the next block attends with (inherit.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reverie.errors import UserError
from reverie.hf.blocks import INSERTED, InsertConfig, Kind
from reverie.hf.inherit import Heads, inherit
from reverie.hf.sleeping import install, sleeping_decoder
from reverie.model import ConvTail, HybridConfig, count_parameters
from reverie.model.fused import rms_norm
from reverie.model.hybrid import MIXERS


class Inserted(NamedTuple):
    """Parameters before and after."""

    added: int
    total: int

    @property
    def share(self) -> float:
        """Of the model as it was."""
        return self.added / (self.total - self.added)


class InsertedMixer(nn.Module):
    """One fast-weight layer between two decoder blocks."""

    def __init__(self, width: int, config: InsertConfig, norm_eps: float) -> None:
        super().__init__()
        sizes = HybridConfig(
            vocab_size=2,  # of the sizes that a mixer does not read, any will do
            width=width,
            layers=(config.kind,),
            mlp_width=1,
            num_heads=1,
            fast_heads=config.heads,
            key_size=config.key_size,
            value_size=config.value_size,
            conv_size=config.conv_size,
            backend="auto",
            norm_eps=norm_eps,
        )
        self.norm_eps = norm_eps
        self.norm_weight = nn.Parameter(torch.ones(width))
        self.mixer = MIXERS[config.kind](sizes)
        for module in self.mixer.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.zeros_(self.mixer.out_proj.weight)

    def forward(self, h: Tensor, fast_weights: Tensor | None, tail: ConvTail | None) -> tuple[Tensor, Tensor, ConvTail]:
        """h [B, T, D], with what the layer adds; its fast weights and the convolution's tail, before and after."""
        x = rms_norm(h, self.norm_eps) * self.norm_weight
        y, new_fast_weights, new_tail = self.mixer(x, fast_weights, tail, span=0)  # which is attention's concern
        return h + y.to(h.dtype), new_fast_weights, new_tail


def insert_fast_weights(
    model: PreTrainedModel,
    layers: Sequence[int],
    kind: Kind = "jet",
    *,
    heads: int | None = None,
    key_size: int | None = None,
    value_size: int | None = None,
    seed: int = 0,
) -> Inserted:
    """Put a layer with fast weights behind each of these blocks, in place; `add_sleep` then says when it sleeps.

    Args:
        layers: indices of blocks, from 0.
        heads, key_size, value_size: of a new layer. If all are absent, it begins with queries, keys and values of the
            next block's attention; of what is given, the rest follows in Jet-Nemotron's proportions, and it begins at
            random.

    Raises UserError for blocks that the model does not have, or that have fast weights already.
    """
    if kind not in get_args(Kind):
        raise UserError(f"kind must be {' or '.join(get_args(Kind))}, got {kind}")
    for name, size in {"heads": heads, "key_size": key_size, "value_size": value_size}.items():
        if size is not None and size < 1:
            raise UserError(f"{name} must be at least 1, got {size}")
    install(model)
    decoder = sleeping_decoder(model)
    blocks = decoder.sleeping
    _check(model, blocks.num_blocks, blocks.fast_weight_blocks, layers)
    width = decoder.config.hidden_size
    inherited = None if heads or key_size or value_size else _inherited(blocks.layers, layers)
    if inherited:
        (heads, key_size), value_size = inherited[layers[0]].q.shape[:2], inherited[layers[0]].v.shape[1]
    config = _sizes(width, tuple(sorted(layers)), kind, heads, key_size, value_size)
    before = count_parameters(model)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        for i in config.layers:
            weight = next(p for p in blocks.layers[i].parameters() if p.is_floating_point())
            mixer = InsertedMixer(width, config, getattr(decoder.config, "rms_norm_eps", 1e-6))
            mixer.to(weight.device, weight.dtype)
            if inherited:
                mixer.norm_weight.data.copy_(inherited[i].gain)
                inherit(mixer.mixer, inherited[i])
            setattr(blocks.layers[i], INSERTED, mixer)
    decoder.inserted_configs += (config,)
    total = count_parameters(model)
    return Inserted(total - before, total)


def inserted_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """By name, the parameters of inserted layers."""
    return {name: p for name, p in model.named_parameters() if f".{INSERTED}." in name}


def freeze_pretrained(model: PreTrainedModel) -> None:
    """For a warm-up: only inserted layers train (paper section 6.4, stage 1)."""
    new = {id(p) for p in inserted_parameters(model).values()}
    if not new:
        raise UserError(f"{type(model).__name__} has no inserted layers, so nothing would train")
    for p in model.parameters():
        p.requires_grad_(id(p) in new)


def unfreeze(model: PreTrainedModel) -> None:
    """Everything trains."""
    model.requires_grad_(True)


def _inherited(blocks: nn.ModuleList, layers: Sequence[int]) -> dict[int, Heads] | None:
    """What new layers begin with, by the block in front (the last one: its own). None if not all can, or alike."""
    heads = {i: Heads.of(blocks[min(i + 1, len(blocks) - 1)]) for i in layers}
    known = {i: found for i, found in heads.items() if found is not None}
    shapes = {(found.q.shape, found.v.shape) for found in known.values()}
    return known if len(known) == len(layers) and len(shapes) == 1 else None


def _sizes(
    width: int, layers: tuple[int, ...], kind: Kind, heads: int | None, key_size: int | None, value_size: int | None
) -> InsertConfig:
    """Jet-Nemotron 2B has 12 heads of 96 keys and 256 values at width 1,536: 8 heads a 1,024, V = 8/3 K."""
    heads = heads or max(round(width / 128), 1)
    key_size = key_size or max(round(0.75 * width / heads), 1)
    return InsertConfig(layers, kind, heads, key_size, value_size or round(key_size * 8 / 3))


def _check(model: PreTrainedModel, num_blocks: int, taken: Sequence[int], layers: Sequence[int]) -> None:
    name = type(model).__name__
    if not layers or len(set(layers)) != len(layers):
        raise UserError(f"layers must name different blocks of {name}, got {list(layers)}")
    for i in layers:
        if not 0 <= i < num_blocks:
            raise UserError(f"{name} has blocks 0 to {num_blocks - 1}, there is none behind {i}")
        if i in taken:
            raise UserError(f"block {i} of {name} has fast weights already")
