"""`HybridConfig`: the sizes and the layer pattern of a model."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

BlockKind = Literal["attn", "gdn", "jet", "jet-only"]
UpdateRule = Literal["hebbian", "delta", "gated_delta"]
Backend = Literal["auto", "chunked", "reference", "fla", "triton"]


class HybridConfig(BaseModel, frozen=True):
    """Sizes and layer pattern of a `HybridLM`.

    Blocks of kind "gdn" and "jet" hold fast weights, "attn" blocks a KV cache. "jet-only" is a Jet layer without an MLP
    after it, as the paper inserts it into a pretrained transformer.

    A pattern of "attn" alone is the `transformer` baseline (paper equation 4), an alternating one the `hybrid`
    (equation 5).
    """

    model_config = ConfigDict(extra="forbid")

    vocab_size: int = Field(ge=2)
    width: int = Field(ge=2, description="D, the residual stream")
    layers: tuple[BlockKind, ...] = Field(min_length=1, description="one mixer per block, first to last")
    mlp_width: int = Field(ge=1, description="inner width of the SwiGLU MLP")

    num_heads: int = Field(ge=1, description="query heads of attention")
    num_kv_heads: int | None = Field(default=None, ge=1, description="key and value heads of attention; all if absent")
    rope_base: float = Field(default=10_000.0, gt=1)

    fast_heads: int = Field(ge=1, description="H, heads of the fast-weight layers")
    key_size: int = Field(ge=1, description="K, rows of a head's fast weights")
    value_size: int = Field(ge=1, description="V, columns of a head's fast weights")
    conv_size: int = Field(default=4, ge=1, description="taps of the short causal convolution")
    value_embedding: bool = Field(
        default=False, description="values of the fast-weight layers from the token's embedding too"
    )
    update_rule: UpdateRule = "gated_delta"
    backend: Backend = "chunked"

    norm_eps: float = Field(default=1e-6, gt=0)

    @model_validator(mode="after")
    def _heads_fit(self) -> HybridConfig:
        if self.width % (2 * self.num_heads):
            raise ValueError(
                f"width {self.width} must be an even multiple of num_heads {self.num_heads} (rotary needs pairs)"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.kv_heads}")
        return self

    @property
    def has_fast_weights(self) -> bool:
        """True if any block holds fast weights."""
        return set(self.layers) != {"attn"}

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads of attention."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        """d, the width of an attention head."""
        return self.width // self.num_heads
