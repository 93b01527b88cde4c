"""TensorBoard as a tracker."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from reverie.files import writing
from reverie.recipe import Recipe
from reverie.train.trackers import scalars


class TensorBoard:
    """Curves in the run's folder `tensorboard`. Raises UserError where it cannot write, as on a full disk."""

    def begin(self, out: Path, recipe: Recipe, first_step: int) -> None:
        self._folder = out / "tensorboard"
        with writing(self._folder):
            # It writes when we flush: by itself it would do so in a thread of its own, with errors that nobody can
            # catch.
            self._writer = SummaryWriter(str(self._folder), purge_step=first_step, flush_secs=10**6)

    def point(self, point: Mapping[str, Any]) -> None:
        with writing(self._folder):
            for name, value in scalars(point).items():
                self._writer.add_scalar(name, value, point["step"])
            self._writer.flush()

    def end(self) -> None:
        with writing(self._folder):
            self._writer.close()
