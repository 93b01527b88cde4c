"""Softmax attention over the window (paper equations 1 and 2): rotary, QK-norm, grouped query heads, SDPA."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from reverie.model.config import HybridConfig
from reverie.model.fused import rms_norm
from reverie.model.linear import linear
from reverie.model.room import append
from reverie.model.rotary import rotate, rotate_at
from reverie.model.state import KVCache
from reverie.ops.constant import constant_when_compiled

QK_GAIN = 1.5  # initial gain of each head's queries

# When compiled blocks skip the scores outside of a band: FlexAttention has no backward on CPU, and with fewer scores
# a mask over all of them costs nothing.
FLEX_DEVICES, FLEX_SCORES = {"cuda"}, 2**18


class Attention(nn.Module):
    """Causal softmax attention with rotary positions, QK-norm and grouped query heads; its state is a `KVCache`."""

    looks_both_ways = True

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.heads = (config.num_heads, config.kv_heads)
        self.head_size = config.head_size
        self.rope_base = config.rope_base
        self.qkv_proj = nn.Linear(config.width, (config.num_heads + 2 * config.kv_heads) * self.head_size, bias=False)
        self.norm_eps = config.norm_eps
        # Normed q and k of size √d give logits of at most √d: too flat for small heads, so each head learns its own.
        self.q_gain = nn.Parameter(torch.full((config.num_heads, 1), QK_GAIN))
        self.out_proj = nn.Linear(config.num_heads * self.head_size, config.width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        fast_weights: None,
        cache: KVCache | None,
        *,
        span: int,
        output: bool = True,
        bidirectional: bool = False,
    ) -> tuple[Float[Tensor, "B T D"] | None, None, KVCache]:
        """Let each token attend to itself and the span − 1 tokens before it, in `cache` or in x; if it is
        bidirectional, to the span − 1 tokens after it in x too.

        Returns y [B, T, D] (None without `output`), None (no fast weights), and the cache with x's tokens appended.
        """
        H, Hkv = self.heads
        qk, v = linear(self.qkv_proj, x).view(*x.shape[:2], -1, self.head_size).split_with_sizes((H + Hkv, Hkv), dim=2)
        start = 0 if cache is None else cache.k.shape[1]
        q, k = rotate(rms_norm(qk, self.norm_eps), start, self.rope_base).split_with_sizes((H, Hkv), dim=2)
        if cache is not None:
            k, v = append(cache.k, k, 1, span), append(cache.v, v, 1, span)
        new_cache = KVCache(k, v, self.rope_base)
        if not output:
            return None, None, new_cache
        y = self._attend(q * self.q_gain, k, v, span, bidirectional)
        return linear(self.out_proj, y.flatten(-2)), None, new_cache

    def at_place(
        self,
        x: Float[Tensor, "B 1 D"],
        k: Float[Tensor, "B places Hkv d"],
        v: Float[Tensor, "B places Hkv d"],
        place: Int[Tensor, ""],
        span: int,
        most: int,
    ) -> Float[Tensor, "B 1 D"]:
        """`forward` of one token, for a compiler: its key and value are written into k and v at `place`.

        Args:
            most: places there are at most, in any call of the same graph.
        """
        H, Hkv = self.heads
        qk, value = self.qkv_proj(x).unflatten(-1, (-1, self.head_size)).split([H + Hkv, Hkv], dim=2)
        index, places = place.view(1), torch.arange(k.shape[1], device=k.device)
        q, key = rotate_at(rms_norm(qk, self.norm_eps), index, most, self.rope_base).split([H, Hkv], dim=2)
        k.index_copy_(1, index, key)
        v.index_copy_(1, index, value)
        seen = (places <= place) & (places > place - span)
        q, k, v = (y.to(value.dtype) for y in (q * self.q_gain, k, v))
        if len(x) > 1:
            q, k, v = (y.transpose(1, 2) for y in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[None], enable_gqa=Hkv != H).transpose(1, 2)
        else:  # sums, which are fused with all else; of many rows they take longer than the kernel
            q = q.to(torch.promote_types(q.dtype, torch.float32)).view(1, 1, Hkv, H // Hkv, -1) * self.head_size**-0.5
            scores = (q * k[:, :, :, None]).sum(-1).masked_fill(~seen[:, None, None], -torch.inf)
            y = (scores.softmax(1)[..., None] * v[:, :, :, None]).sum(1, keepdim=True).to(value.dtype)
        return self.out_proj(y.reshape(*x.shape[:2], -1))

    def _attend(
        self,
        q: Float[Tensor, "B T H d"],
        k: Float[Tensor, "B S Hkv d"],
        v: Float[Tensor, "B S Hkv d"],
        span: int,
        bidirectional: bool,
    ) -> Float[Tensor, "B T H d"]:
        """Attention outputs of the newest T of S tokens, each over keys less than `span` away, none of them later
        unless it is bidirectional."""
        T = q.shape[1]
        in_reach = T + span - 1  # from the oldest key that the first query sees to the newest
        if (S := k.shape[1]) > in_reach:
            k, v, S = k[:, -in_reach:], v[:, -in_reach:], in_reach
        q = q if q.dtype == v.dtype else q.to(v.dtype)  # it has its gain's type under autocast
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        grouped = self.heads[0] != self.heads[1]
        flex = torch.compiler.is_compiling() and q.device.type in FLEX_DEVICES and T * S >= FLEX_SCORES
        if T == S <= span or T == 1:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1 and not bidirectional, enable_gqa=grouped)
        elif flex and not bidirectional:
            _make_band(T, S, span, q.device)
            y = flex_attention(q, k, v, block_mask=_bands[T, S, span, q.device], enable_gqa=grouped)
            assert isinstance(y, Tensor)  # it returns more if asked
        else:
            distance = torch.arange(S - T, S, device=q.device)[:, None] - torch.arange(S, device=q.device)
            mask = (distance.abs() < span) & ((distance >= 0) | bidirectional)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
        return y.transpose(1, 2)


_bands: dict[tuple[int, int, int, torch.device], BlockMask] = {}  # read by compiled blocks as a constant


@constant_when_compiled
def _make_band(T: int, S: int, span: int, device: torch.device) -> None:
    """Add the band's block mask over T × S scores to `_bands`; called while a block is compiled, not when it runs."""

    def in_band(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = query + (S - T) - key
        return (distance >= 0) & (distance < span)

    if (T, S, span, device) not in _bands:
        _bands[T, S, span, device] = create_block_mask(in_band, None, None, T, S, device=device)
