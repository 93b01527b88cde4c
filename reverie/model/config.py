"""`HybridConfig`: the sizes and the layer pattern of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticKnownError

from reverie import ops
from reverie.model.injection import INJECTIONS, injection_named
from reverie.model.mixers import MIXERS, mixer_kind, settings_of
from reverie.named import is_named


def _one_of(known: Iterable[str], find: Callable[[str], Any]) -> AfterValidator:
    """A name among `known`, or "module:object" that `find` accepts."""

    def check(name: str) -> str:
        if name not in known and not is_named(name):
            *rest, last = (f"'{one}'" for one in known if not is_named(one))
            raise PydanticKnownError("literal_error", {"expected": f"{', '.join(rest)} or {last}"})
        find(name)
        return name

    return AfterValidator(check)


BlockKind = Annotated[str, _one_of(MIXERS, mixer_kind)]
UpdateRule = Annotated[str, _one_of(ops.RULES, ops.find_rule)]
InjectionName = Annotated[str, _one_of(INJECTIONS, injection_named)]
Backend = Literal["auto", "chunked", "reference", "fla", "triton"]


class HybridConfig(BaseModel, frozen=True):
    """Sizes and layer pattern of a `HybridLM`.

    Blocks of kind "gdn" and "jet" hold fast weights, "attn" blocks a KV cache. "jet-only" is a Jet layer without an MLP
    after it, as the paper inserts it into a pretrained transformer. Other kinds are registered (`register_mixer`) or
    named module:Class, and so are update rules and injections.

    A pattern of "attn" alone is the `transformer` baseline (paper equation 4), an alternating one the `hybrid`
    (equation 5).
    """

    model_config = ConfigDict(extra="forbid")

    vocab_size: int = Field(ge=2, le=2**24)
    width: int = Field(ge=2, le=2**16, description="D, the residual stream")
    layers: tuple[BlockKind, ...] = Field(
        min_length=1, max_length=1000, description="one mixer per block, first to last"
    )
    mlp_width: int = Field(ge=1, le=2**20, description="inner width of the SwiGLU MLP")

    num_heads: int = Field(ge=1, le=4096, description="query heads of attention")
    num_kv_heads: int | None = Field(
        default=None, ge=1, le=4096, description="key and value heads of attention; all if absent"
    )
    rope_base: float = Field(default=10_000.0, gt=1)

    fast_heads: int = Field(ge=1, le=4096, description="H, heads of the fast-weight layers")
    key_size: int = Field(ge=1, le=2**16, description="K, rows of a head's fast weights")
    value_size: int = Field(ge=1, le=2**16, description="V, columns of a head's fast weights")
    conv_size: int = Field(default=4, ge=1, le=1024, description="taps of the short causal convolution")
    value_embedding: bool = Field(
        default=False, description="values of the fast-weight layers from the token's embedding too"
    )
    mixers: dict[str, dict[str, Any]] = Field(default={}, description="settings of mixers that have some, by name")
    update_rule: UpdateRule = "gated_delta"
    injection: InjectionName = Field(
        default="none", description="what sleep passes from the second on read beside h: see injection.py"
    )
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

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @model_validator(mode="after")
    def _mixers_have_these_settings(self) -> HybridConfig:
        for name in self.mixers.keys() | set(self.layers):
            settings_of(name, self.mixers.get(name, {}))
        return self

    @model_validator(mode="after")
    def _rule_has_this_backend(self) -> HybridConfig:
        backends = ("auto", *ops.find_rule(self.update_rule))
        if self.backend not in backends:
            raise ValueError(f"backend must be {' or '.join(backends)} for update rule {self.update_rule}")
        return self

    @property
    def has_fast_weights(self) -> bool:
        """True if any block holds fast weights."""
        return any(mixer_kind(name).fast_weights for name in self.layers)

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads of attention."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        """d, the width of an attention head."""
        return self.width // self.num_heads
