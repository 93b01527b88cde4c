"""`SleepConfig`: when and how long a model sleeps, and what that means for the blocks of one model."""

from __future__ import annotations

import math
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reverie.errors import UserError
from reverie.model import Eviction, SleepingModel

MOST_PASSES = 10_000
"""Over a window: a number in a file or an option must not make a sleep endless."""


class SleepConfig(BaseModel):
    """Settings of sleep: when, over which blocks, and for how many passes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_size: int = Field(ge=1, le=2**63 - 1, description="L, tokens awake before sleep")
    num_sleep_passes: int = Field(default=1, ge=1, le=MOST_PASSES, description="N; 1 is the ordinary hybrid")
    looped_blocks: tuple[int, int] | None = Field(default=None, description="blocks [a, b) of a pass; all if absent")
    eviction: Eviction = "hard"
    bidirectional_sleep: bool = Field(
        default=False, description="attention of passes 2 to N looks both ways in the window"
    )
    # A row stops after the first pass that changes its fast weights by less, relatively; N is then the most.
    tolerance: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="see halting.py")

    @model_validator(mode="after")
    def _range(self) -> SleepConfig:
        if self.looped_blocks is not None and not 0 <= self.looped_blocks[0] < self.looped_blocks[1]:
            raise ValueError(f"looped_blocks must be [a, b] with 0 <= a < b, got {list(self.looped_blocks)}")
        return self

    def with_(self, *, num_sleep_passes: int | None = None, tolerance: float | None = None) -> SleepConfig:
        """A copy with another number of passes or another tolerance, where one is given.

        Raises:
            UserError: a number is out of range.
        """
        if num_sleep_passes is not None and not 1 <= num_sleep_passes <= MOST_PASSES:
            raise UserError(f"the number of passes must be from 1 to {MOST_PASSES:,}, got {num_sleep_passes:,}")
        if tolerance is not None and not 0 < tolerance < math.inf:
            raise UserError(f"the tolerance must be a number above 0, such as 0.05, got {tolerance:g}")
        given = {"num_sleep_passes": num_sleep_passes, "tolerance": tolerance}
        return self.model_copy(update={key: value for key, value in given.items() if value is not None})


class Plan(NamedTuple):
    """Which blocks run when, for one model and one `SleepConfig`."""

    passes: int  # N, or 1 where no later pass could change what outlives the window
    a: int  # the looped blocks are [a, b)
    b: int
    kept: int  # nothing that blocks from here on write outlives the window


def plan(model: SleepingModel, config: SleepConfig) -> Plan:
    """Which blocks of the model run in which pass.

    Raises:
        UserError: `looped_blocks` does not fit the model, or no attention can look both ways.
    """
    if config.bidirectional_sleep and not getattr(model, "looks_both_ways", True):
        raise UserError("bidirectional_sleep needs a block whose attention can look both ways, and the model has none")
    a, b = config.looped_blocks or (0, model.num_blocks)
    if b > model.num_blocks:
        raise UserError(f"looped_blocks [{a}, {b}] must end at or before {model.num_blocks}, the number of blocks")
    kept = model.num_blocks if config.eviction == "sliding" else max(model.fast_weight_blocks, default=-1) + 1
    return Plan(config.num_sleep_passes if kept > a else 1, a, b, kept)
