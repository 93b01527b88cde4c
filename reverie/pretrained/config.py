"""`PretrainedModel`: a causal language model of transformers, and the fast-weight layers that it gets."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reverie.model.config import Backend


class PretrainedModel(BaseModel):
    """Where the model comes from; with `behind`, layers with fast weights are inserted (`hf.insert_fast_weights`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = Field(ge=2, description="tokens of the task; the model may know more")
    pretrained: str = Field(min_length=1, description='"smollm2", a folder, or a name on the Hugging Face hub')
    behind: tuple[int, ...] = Field(default=(), description="blocks that get a layer with fast weights behind them")
    kind: Literal["jet", "gdn"] = "jet"
    fast_heads: int | None = Field(
        default=None, ge=1, description="H of the new layers; Jet-Nemotron's sizes if absent"
    )
    key_size: int | None = Field(default=None, ge=1, description="K")
    value_size: int | None = Field(default=None, ge=1, description="V")
    backend: Backend = Field(default="auto", description="of the new layers, as in HybridConfig")

    @model_validator(mode="after")
    def _blocks(self) -> PretrainedModel:
        if len(set(self.behind)) < len(self.behind) or any(i < 0 for i in self.behind):
            raise ValueError(f"behind must be different indices of blocks, from 0, got {list(self.behind)}")
        return self

    @property
    def has_fast_weights(self) -> bool:
        """Its own, or inserted ones; a model with neither is an error when it is loaded."""
        return True
