"""A new fast-weight layer that begins with what the attention behind it knows.

Attention heads that find the earlier place that matters are what a fast-weight layer lacks at first. So its queries,
keys and values start as those of the next block's attention, which reads the same h: what attention would find among
the tokens of a window, the layer finds in its memory. (Others start linear attention in pretrained models likewise.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reverie.model.fast_weights import FastWeightMixer
from reverie.model.gated_deltanet import GatedDeltaNet
from reverie.model.jet import JetLayer


class Heads(NamedTuple):
    """Projections of a block's attention: a key and a value head for each head of queries, biases left out."""

    q: Float[Tensor, "H d D"]
    k: Float[Tensor, "H d D"]
    v: Float[Tensor, "H d D"]
    gain: Float[Tensor, " D"]  # of the norm in front

    @classmethod
    def of(cls, block: nn.Module) -> Heads | None:
        """None where the block has no attention of the usual form behind a norm."""
        norm = getattr(block, "input_layernorm", None)
        attention = next((m for m in block.modules() if _has_projections(m)), None)
        if attention is None or not isinstance(norm, nn.Module):
            return None
        size = getattr(attention, "head_dim", None)
        weights = [getattr(attention, f"{name}_proj").weight.detach() for name in "qkv"]
        if not size or any(len(weight) % size for weight in weights) or len(weights[1]) != len(weights[2]):
            return None
        q, k, v = (weight.unflatten(0, (-1, size)) for weight in weights)
        heads = getattr(getattr(attention, "config", None), "num_attention_heads", len(q))
        if len(q) != heads or len(q) % len(k):  # more rows than heads: some of them are gates
            return None
        k, v = (x.repeat_interleave(len(q) // len(k), dim=0) for x in (k, v))
        return cls(q, k, v, _gain(norm, q))


def _gain(norm: nn.Module, like: Tensor) -> Tensor:
    """By what a norm multiplies, whether it keeps that, or that less one. Asked with ±1: mean 0, mean square 1."""
    x = torch.ones(like.shape[-1], device=like.device, dtype=like.dtype)
    x[1::2] = -1
    return (norm(x) - norm(-x)).detach() / (2 * x)


def _has_projections(module: nn.Module) -> bool:
    return all(isinstance(getattr(module, f"{name}_proj", None), nn.Linear) for name in "qkv")


@torch.no_grad()
def inherit(mixer: FastWeightMixer, heads: Heads) -> None:
    """Its projections become the heads', its convolution passes on the newest token as it is."""
    mixer.qkv_proj.weight.copy_(torch.cat([x.flatten(0, 1) for x in (heads.q, heads.k, heads.v)]))
    if isinstance(mixer, GatedDeltaNet):
        mixer.conv_weight.zero_()[-1] = 1
    elif isinstance(mixer, JetLayer):
        mixer.kernel_out.weight.zero_()
        mixer.kernel_out.bias.zero_().unflatten(0, (mixer.conv_size, -1))[-1] = 1
