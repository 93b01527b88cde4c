"""`train.deepen_below`: questions grow deeper as the model learns, not by a schedule.

Every `STRETCH` steps the mean loss of the stretch decides. What has been decided is part of a run's progress, and a
batch depends on it and on its step alone, so a resumed run sees what it would have seen.
"""

from __future__ import annotations

from reverie.recipe import Recipe
from reverie.results.checkpoint import Progress
from reverie.train.batches import max_depth
from reverie.train.ready import STRETCH


def deepest(recipe: Recipe, progress: Progress, step: int) -> int:
    """The deepest question of a step of the stretch that `progress` is in."""
    if recipe.train.deepen_below is None:
        return max_depth(recipe, step)
    depths = recipe.task.depths()
    return depths[min(progress.deepened, len(depths) - 1)]


def at_end_of_stretch(recipe: Recipe, progress: Progress) -> bool:
    return recipe.train.deepen_below is not None and progress.step % STRETCH == 0


def deepen(recipe: Recipe, progress: Progress) -> None:
    """To be called at the end of a stretch, when the losses of all its steps are in."""
    assert recipe.train.deepen_below is not None
    learnt = progress.stretch_loss_sum < recipe.train.deepen_below * STRETCH
    progress.deepened = min(progress.deepened + learnt, len(recipe.task.depths()) - 1)
    progress.stretch_loss_sum = 0.0
