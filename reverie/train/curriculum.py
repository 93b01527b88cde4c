"""`train.curriculum`: the deepest question asked grows to its full depth, by steps or by what has been learnt.

By steps it depends on the step alone, so every model and every number of passes sees the same data in the same order.
By success the mean loss of every `STRETCH` steps decides; that is part of a run's progress, so a resumed run sees what
it would have seen.
"""

from collections.abc import Sequence

from reverie.recipe import BySuccess, TrainConfig
from reverie.results.checkpoint import Progress

STRETCH = 64  # steps; data that a GPU makes, it makes for so many at once


def scheduled_depth(config: TrainConfig, depths: Sequence[int], step: int) -> int:
    """The deepest question of a step: from the shallowest of `depths` to the deepest in equal stretches, then that."""
    share = 0.0 if isinstance(config.curriculum, BySuccess) else config.curriculum
    if share == 0:
        return depths[-1]
    return depths[min(int(step / (share * config.steps) * len(depths)), len(depths) - 1)]


class Curriculum:
    """The deepest question that a run asks, step by step.

    Args:
        depths: of the task's questions, ascending.
        progress: of the run, which keeps what has been decided.
    """

    def __init__(self, config: TrainConfig, depths: Sequence[int], progress: Progress) -> None:
        self.config, self.depths, self.progress = config, depths, progress
        self.loss_below = config.curriculum.loss_below if isinstance(config.curriculum, BySuccess) else None

    def deepest(self, step: int) -> int:
        """The deepest question of a step of the stretch that the run is in."""
        if self.loss_below is None:
            return scheduled_depth(self.config, self.depths, step)
        return self.depths[min(self.progress.deepened, len(self.depths) - 1)]

    def decides(self) -> bool:
        """True after a step at which it is decided by success: the losses of all steps so far must be in then."""
        return self.loss_below is not None and self.progress.step % STRETCH == 0

    def decide(self) -> None:
        """Go one deeper if the mean loss of the stretch that has just ended is low enough."""
        assert self.loss_below is not None
        learnt = self.progress.stretch_loss_sum < self.loss_below * STRETCH
        self.progress.deepened = min(self.progress.deepened + learnt, len(self.depths) - 1)
        self.progress.stretch_loss_sum = 0.0
