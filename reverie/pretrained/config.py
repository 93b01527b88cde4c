"""`PretrainedModelConfig`: a causal language model of transformers, and the fast-weight layers that it gets."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reverie.model.config import Backend, InjectionName
from reverie.model.mixers import check_inserted


class PretrainedModelConfig(BaseModel):
    """Where the model comes from, and where layers with fast weights are inserted (`hf.insert_fast_weights`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = Field(ge=2, le=2**24, description="tokens of the task; the model may know more")
    pretrained: str = Field(min_length=1, description='"smollm2", a folder, or a name on the Hugging Face hub')
    after: tuple[int, ...] = Field(default=(), description="blocks that a new layer with fast weights follows")
    kind: str = Field(default="jet", description="of the new layers: gdn, jet, or module:Class")
    settings: dict[str, Any] | None = Field(default=None, description="of the new layers, where their kind has some")
    fast_heads: int | None = Field(
        default=None, ge=1, le=4096, description="H of the new layers; Jet-Nemotron's sizes if absent"
    )
    key_size: int | None = Field(default=None, ge=1, le=2**16, description="K")
    value_size: int | None = Field(default=None, ge=1, le=2**16, description="V")
    value_embedding: bool = Field(default=False, description="values from the token's embedding too")
    injection: InjectionName = Field(default="none", description="what sleep passes from the second on read beside h")
    lora_rank: int | None = Field(default=None, ge=1, le=2**16, description="of updates that lora_blocks train by")
    lora_blocks: tuple[tuple[int, int], ...] = Field(default=(), description="ranges [a, b) of the model's own blocks")
    backend: Backend = Field(default="auto", description="of the new layers, as in HybridConfig")

    @model_validator(mode="before")
    @classmethod
    def _earlier_name(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "behind" not in data:
            return data
        if "after" in data:
            raise ValueError("behind is the earlier name of after: give one of them")
        warnings.warn("model.behind of recipes is called model.after now", FutureWarning, stacklevel=2)
        return {"after" if key == "behind" else key: value for key, value in data.items()}

    @model_validator(mode="after")
    def _can_be_inserted(self) -> PretrainedModelConfig:
        check_inserted(self.kind, self.settings or {}, value_embedding=self.value_embedding)
        return self

    @model_validator(mode="after")
    def _blocks(self) -> PretrainedModelConfig:
        if len(set(self.after)) < len(self.after) or any(i < 0 for i in self.after):
            raise ValueError(f"after must be different indices of blocks, from 0, got {list(self.after)}")
        for a, b in self.lora_blocks:
            if not 0 <= a < b:
                raise ValueError(f"lora_blocks must be ranges [a, b) with 0 <= a < b, got {[a, b]}")
        if self.lora_blocks and self.lora_rank is None:
            raise ValueError("lora_blocks need lora_rank, the rank of their updates")
        return self

    @property
    def has_fast_weights(self) -> bool:
        """True: its own, or inserted ones. A model with neither is an error when it is loaded."""
        return True
