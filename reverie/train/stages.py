"""Training stages: which parameters train, under which eviction, over which steps.

The stage of a step depends on the step alone, so a run that is resumed goes on in the stage that it was broken off in.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from reverie.model import LanguageModel
from reverie.recipe import Recipe, StageConfig
from reverie.sleep import SleepConfig


class Stage(NamedTuple):
    """A stretch of training, as a step of it needs to know it."""

    first: int  # step; 0 is the first of the run
    steps: int
    fast_weights_only: bool
    sleep: SleepConfig


def stage_at(recipe: Recipe, step: int) -> Stage:
    """The stage of a step (0 is the first). A recipe without stages is one stage: everything, under sleep.eviction."""
    stages = recipe.train.stages or [StageConfig(share=1, parameters="all", eviction=recipe.sleep.eviction)]
    starts = [0, *recipe.train.stage_ends]
    i = bisect_right(starts[1:-1], step)
    sleep = recipe.sleep.model_copy(update={"eviction": stages[i].eviction})
    return Stage(starts[i], starts[i + 1] - starts[i], stages[i].parameters == "fast_weights", sleep)


def sleep_at(recipe: Recipe, step: int) -> SleepConfig:
    """How training sleeps at a step: under the eviction of its stage, with a number of passes that may be drawn."""
    sleep, passes = stage_at(recipe, step).sleep, recipe.train.num_sleep_passes
    return (
        sleep if passes is None else sleep.model_copy(update={"num_sleep_passes": passes.draw(recipe.train.seed, step)})
    )


def freeze_others(model: LanguageModel, stage: Stage) -> None:
    """Leave only the stage's parameters trainable: the others get no gradient, so that the optimisers pass them by."""
    model.requires_grad_(not stage.fast_weights_only)
    for parameter in model.fast_weight_parameters():
        parameter.requires_grad_(True)
