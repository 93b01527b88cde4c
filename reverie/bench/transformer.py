"""A transformer that keeps the keys and values of everything it read: what a sleeping model is measured beside."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from reverie.bench.check import SEED, random_model, require_equal
from reverie.model import HybridConfig, HybridLM
from reverie.model.fused import rms_norm

BYTES = 4  # a number in float32
TOLERANCE = 1e-9  # of the largest entry, in float64


class FullCache:
    """Decodes with a `HybridLM` of attention blocks alone, one text, one token a call.

    The cache is taken whole at the start and written in place, heads outermost, as attention reads it fastest.
    `HybridLM` itself makes a new cache in every call: right for gradients and a window, not for a million tokens.
    """

    def __init__(self, model: HybridLM, capacity: int) -> None:
        """Room for `capacity` tokens, with random keys and values: attention takes the same time over any."""
        config = model.config
        shape = (2, len(config.layers), 1, config.kv_heads, capacity, config.head_size)
        random = torch.Generator().manual_seed(SEED)
        self.model = model
        self.k, self.v = model.embedding.weight.new_empty(shape).normal_(generator=random)  # keys are rotated
        pairs = torch.arange(0, config.head_size, 2, dtype=torch.float64) / config.head_size
        self._frequencies = config.rope_base**-pairs

    @torch.no_grad()
    def decode(self, token: Int[Tensor, "1 1"], position: int) -> Float[Tensor, "1 1 vocab"]:
        """Logits after the token at this position, which sees all positions before its own."""
        # HybridLM's table of turns for a million positions would hold gigabytes: those of one are made here.
        angles = position * self._frequencies
        turns = torch.polar(torch.ones_like(angles), angles).to(self.k.dtype.to_complex())
        h, eps = self.model.embed(token), self.model.config.norm_eps
        layers: Any = self.model.layers
        for i, layer in enumerate(layers):
            h = h + self._attend(i, layer.mixer, rms_norm(h, eps), position, turns)
            h = h + layer.mlp(rms_norm(h, eps))
        return self.model.head(h)

    def _attend(self, i: int, mixer: Any, x: Tensor, position: int, turns: Tensor) -> Tensor:
        H, Hkv = mixer.heads
        qk, v = mixer.qkv_proj(x).unflatten(-1, (-1, mixer.head_size)).split([H + Hkv, Hkv], dim=2)
        pairs = torch.view_as_complex(rms_norm(qk, mixer.norm_eps).unflatten(-1, (-1, 2)))
        q, k = torch.view_as_real(pairs * turns).flatten(-2).split([H, Hkv], dim=2)
        self.k[i, :, :, position] = k[:, 0]
        self.v[i, :, :, position] = v[:, 0]
        seen = slice(position + 1)
        y = F.scaled_dot_product_attention(
            (q * mixer.q_gain).transpose(1, 2), self.k[i, :, :, seen], self.v[i, :, :, seen], enable_gqa=Hkv != H
        )
        return mixer.out_proj(y.transpose(1, 2).flatten(-2))


def cache_bytes(config: HybridConfig, tokens: int) -> int:
    """Bytes of the keys and values of so many tokens, in float32."""
    return 2 * config.layers.count("attn") * config.kv_heads * config.head_size * tokens * BYTES


def check_full_cache(config: HybridConfig, tokens: int = 100) -> None:
    """Raises UserError where the transformer decodes other logits than `HybridLM` finds in one forward pass."""
    model = random_model(config).double()
    text = torch.randint(config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(SEED))
    cache = FullCache(model, tokens)
    got = [cache.decode(token, position) for position, token in enumerate(text.split(1, dim=1))]
    require_equal(torch.cat(got, dim=1), model(text), TOLERANCE, "the transformer, of the logits the worst")
