"""Weights & Biases as a tracker."""

import importlib
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reverie.errors import UserError
from reverie.files import write_atomic
from reverie.recipe import Recipe
from reverie.train.trackers import scalars

ID_NAME = "wandb-id.txt"  # in the folder of a run


class Wandb:
    """One run there for one folder here, also if it goes on; project and login are those of the package."""

    def begin(self, out: Path, recipe: Recipe, first_step: int) -> None:
        wandb: Any = importlib.import_module("wandb")
        if not hasattr(wandb, "init"):  # a folder of that name, as the package itself makes them
            raise UserError("train.trackers has wandb, which needs the package wandb: install it, or leave wandb out")
        place = out / ID_NAME
        if first_step == 1 or not place.is_file() or not re.fullmatch(rb"[0-9a-f]{8}", place.read_bytes()):
            write_atomic(place, secrets.token_hex(4).encode())
        settings = recipe.model_dump(mode="json")
        self._run = wandb.init(
            id=place.read_text(encoding="utf-8"), resume="allow", name=recipe.name, config=settings, dir=str(out)
        )

    def point(self, point: Mapping[str, Any]) -> None:
        if point["step"] >= self._run.step:  # the first that it lacks: the same point may come again after a break
            self._run.log(scalars(point), step=point["step"])

    def end(self) -> None:
        self._run.finish()
