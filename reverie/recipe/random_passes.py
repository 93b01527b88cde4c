"""`RandomPasses`: a number of sleep passes drawn anew for every training step, so that a model learns to sleep any N.

Recurrent-depth models are trained so (Geiping et al. 2025, arXiv 2502.05171); the paper on sleep trains a fixed N.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

_STREAM = 2**63  # away from the keys that data is drawn with, which hold a step times two
_SIGMA = 0.5  # of the logarithm


class RandomPasses(BaseModel):
    """A distribution of N. All examples of a step have the same one.

    "uniform"             1, 2, …, 2 · mean − 1
    "poisson"             1 + Poisson(mean − 1)
    "lognormal_poisson"   1 + Poisson(r), where r is log-normal with mean `mean` − 1 and σ = ½: a longer tail

    What is drawn above `max` becomes `max`, which takes the true mean down a little.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    distribution: Literal["uniform", "poisson", "lognormal_poisson"]
    mean: float = Field(ge=1)
    max: int = Field(ge=1, le=10_000)

    @model_validator(mode="after")
    def _fits(self) -> RandomPasses:
        if self.mean > self.max:
            raise ValueError(f"has a mean of {self.mean:g}, which must not be above its max {self.max}")
        if self.distribution == "uniform" and self.mean % 0.5:
            raise ValueError(f"has a mean of {self.mean:g}, which of uniform numbers from 1 must be a multiple of 0.5")
        return self

    def draw(self, seed: int, step: int) -> int:
        """N of a step (0 is the first): it depends on seed and step alone."""
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, _STREAM + step], dtype=np.uint64)))
        if self.distribution == "uniform":
            return min(int(rng.integers(1, round(2 * self.mean))), self.max)
        rate = self.mean - 1
        if self.distribution == "lognormal_poisson":
            rate *= float(np.exp(_SIGMA * rng.standard_normal() - _SIGMA**2 / 2))
        return min(1 + int(rng.poisson(rate)), self.max)
