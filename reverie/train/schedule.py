"""The schedule of a training: which parameters train at a step, how the model sleeps, and the learning rates.

All of it depends on the step alone, so a run that is resumed goes on as it would have.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

from torch.optim import Optimizer

from reverie.model import LanguageModel
from reverie.recipe import OptimConfig, Recipe, StageConfig, TrainConfig
from reverie.sleep import SleepConfig
from reverie.train.optim import set_lr


class Stage(NamedTuple):
    """A stretch of training."""

    first: int  # step; 0 is the first of the run
    steps: int
    fast_weights_only: bool
    sleep: SleepConfig


@dataclass(frozen=True)
class Schedule:
    """The course of a training, by step (0 is the first)."""

    train: TrainConfig
    sleep: SleepConfig
    optim: OptimConfig

    @classmethod
    def of(cls, recipe: Recipe) -> Schedule:
        return cls(recipe.train, recipe.sleep, recipe.optim)

    def stage(self, step: int) -> Stage:
        """The stage of a step. Without stages there is one: everything trains, under the eviction of `sleep`."""
        stages = self.train.stages or [StageConfig(share=1, parameters="all", eviction=self.sleep.eviction)]
        starts = [0, *self.train.stage_ends]
        i = bisect_right(starts[1:-1], step)
        sleep = self.sleep.model_copy(update={"eviction": stages[i].eviction})
        return Stage(starts[i], starts[i + 1] - starts[i], stages[i].parameters == "fast_weights", sleep)

    def sleep_at(self, step: int) -> SleepConfig:
        """The `SleepConfig` of a step: as its stage says, with a number of passes that may be drawn."""
        sleep, passes = self.stage(step).sleep, self.train.num_sleep_passes
        return sleep if passes is None else sleep.with_(num_sleep_passes=passes.draw(self.train.seed, step))

    def set_lr(self, optimizers: list[Optimizer], step: int) -> None:
        """The learning rates of a step: each stage has their whole course."""
        stage = self.stage(step)
        set_lr(optimizers, self.optim, step - stage.first, stage.steps)

    def freeze_others(self, model: LanguageModel, step: int) -> None:
        """Leave only what trains at a step trainable: the rest gets no gradient, so that the optimisers pass it by."""
        model.requires_grad_(not self.stage(step).fast_weights_only)
        for parameter in model.fast_weight_parameters():
            parameter.requires_grad_(True)
