"""`AdaptConfig`: how an adapter of a pretrained model is trained on pages, and on questions about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator


class StartConfig(BaseModel):
    """A start that already looks things up (`hf/start.py`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    keys_early: int = Field(
        default=1, ge=0, le=1024, description="tokens between the one that is looked up by and the found one"
    )
    query_tokens: int = Field(default=1, ge=1, le=1024, description="newest tokens that a query is made of")
    read_out: tuple[Literal["head", "state", "both"], ...] = Field(
        default=("head",),
        min_length=1,
        description="for each layer, what is read becomes a token's row of the head, or its usual state, or both",
    )
    strength: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(0.1,), min_length=1, description="for each layer, the norm of what is read as a share of the states'"
    )
    pages: int = Field(default=64, ge=1, le=10_000, description="from which projections and read-out are computed")


Start = Annotated[
    Annotated[StartConfig, Tag("start")] | Annotated[Literal[False], Tag("none")],
    Discriminator(lambda value: "start" if isinstance(value, Mapping | StartConfig) else "none"),
]


class LossConfig(BaseModel):
    """Weights of the losses; one of weight 0 is not computed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    answer: float = Field(default=1.0, ge=0, description="cross entropy of an answer's tokens")
    end: float = Field(default=0.2, ge=0, description="cross entropy of the token that ends an answer")
    address: float = Field(
        default=0.3, ge=0, description="contrastive: a query finds the key at the answer's place among all of the text"
    )
    address_alone: float = Field(
        default=0.0, ge=0, lt=1, description="share of the steps, the first, in which addresses alone are learnt"
    )
    plain_text: float = Field(
        default=1.0, ge=0, description="KL divergence from the untouched model on text that asks nothing"
    )
    distillation: float = Field(
        default=0.0, ge=0, description="KL divergence from the untouched model with the page in its context"
    )
    sampled_vocabulary: int = Field(
        default=3000,
        ge=0,
        le=2**24,
        description="random tokens that answers compete with, beside those of the texts; 0: all there are",
    )


class AdaptConfig(BaseModel):
    """Which part of the model trains, on how many pages, and how they are put together."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    trained_blocks: tuple[tuple[int, int], ...] = Field(
        default=(), description="ranges [a, b) of the model's own blocks that train beside the inserted layers"
    )
    final_norm: bool = Field(default=False, description="the norm before the head trains too")
    pool: int = Field(default=1024, ge=1, le=10**7, description="pages whose frozen beginning is computed")
    pool_full_at: float = Field(
        default=0.5, gt=0, le=1, description="share of the steps after which all of them are in use"
    )
    pages: tuple[int, int] = Field(default=(1, 1), description="fewest and most pages that a text is put together from")
    questions: int = Field(default=12, ge=1, le=10_000, description="about a page, at most")
    plain_text: str = Field(
        default="",
        description="file or folder of prose that the model must go on with as before; Python's help if absent",
    )
    own_text: int = Field(
        default=0, ge=0, le=100_000, description="windows more of plain text, which the untouched model writes itself"
    )
    plain_windows: int = Field(default=3, ge=1, le=10_000, description="windows of that a step")
    plain_among: tuple[Annotated[int, Field(le=100_000)], Annotated[int, Field(le=100_000)]] = Field(
        default=(0, 0),
        description="fewest and most windows of that anywhere among the pages of a text, which sleep too",
    )
    start: Start = Field(default=StartConfig(), description="false: layers start as inserted")
    loss: LossConfig = LossConfig()

    @model_validator(mode="after")
    def _ranges(self) -> AdaptConfig:
        if not 1 <= self.pages[0] <= self.pages[1]:
            raise ValueError(f"pages must be [fewest, most] with 1 <= fewest <= most, got {list(self.pages)}")
        if not 0 <= self.plain_among[0] <= self.plain_among[1]:
            raise ValueError(
                f"plain_among must be [fewest, most] with 0 <= fewest <= most, got {list(self.plain_among)}"
            )
        for a, b in self.trained_blocks:
            if not 0 <= a < b:
                raise ValueError(f"trained_blocks must be ranges [a, b] with 0 <= a < b, got {[a, b]}")
        return self
