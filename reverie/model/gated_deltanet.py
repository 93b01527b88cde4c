"""Gated DeltaNet (arXiv 2412.06464): a short depthwise causal convolution and SiLU before q, k and v."""

import torch
from torch import Tensor, nn

from reverie.model.config import HybridConfig
from reverie.model.fast_weights import FastWeightMixer, with_tail
from reverie.model.fused import causal_conv_silu
from reverie.model.linear import linear
from reverie.model.state import ConvTail


class GatedDeltaNet(FastWeightMixer):
    """Mixer with a learned convolution of conv_size taps a channel over q, k and v."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        bound = config.conv_size**-0.5
        self.conv_weight = nn.Parameter(torch.empty(config.conv_size, sum(self.sizes)).uniform_(-bound, bound))

    def mix_qkv(self, x: Tensor, tail: ConvTail | None) -> tuple[Tensor, Tensor, ConvTail]:
        extended, tail = with_tail(linear(self.qkv_proj, x), tail, self.conv_size)
        qk, v = causal_conv_silu(extended, self.conv_weight).split_with_sizes(self.sizes, dim=-1)
        return qk, v, tail
