"""Jet layer (Jet-Nemotron, arXiv 2508.15884): a dynamic convolution over v; q and k have SiLU alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.model.config import HybridConfig
from reverie.model.fast_weights import FastWeightMixer, with_tail
from reverie.model.linear import linear
from reverie.model.state import ConvTail


class JetLayer(FastWeightMixer):
    """Mixer whose convolution kernels, conv_size taps a channel, a two-layer SiLU network computes from each token."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        value_width = self.sizes[1]
        hidden = max(value_width // 8, 1)
        self.kernel_in = nn.Linear(config.width, hidden, bias=False)
        self.kernel_out = nn.Linear(hidden, config.conv_size * value_width)

    def mix_qkv(self, x: Tensor, tail: ConvTail | None) -> tuple[Tensor, Tensor, ConvTail]:
        qk, v = linear(self.qkv_proj, x).split_with_sizes(self.sizes, dim=-1)
        kernels = linear(self.kernel_out, F.silu(linear(self.kernel_in, x)))
        extended, tail = with_tail(v, tail, self.conv_size)
        if (T := x.shape[1]) == 1 and not torch.is_grad_enabled():
            mixed = (extended * kernels.view(extended.shape)).sum(1, keepdim=True)
            return F.silu(qk), F.silu(mixed), tail
        kernels = kernels.chunk(self.conv_size, dim=-1)
        mixed = extended[:, :T] * kernels[0]
        for i in range(1, self.conv_size):
            mixed = torch.addcmul(mixed, extended[:, i : i + T], kernels[i])
        return F.silu(qk), F.silu(mixed), tail
