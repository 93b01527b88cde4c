"""One safetensors file that holds everything a run needs to go on to the same curve: no pickle, written atomically.

Tensors: `model.<name>`, `optimizer.<i>.<name>.<entry>` and the random state `rng`. Metadata: the recipe, the step, the
curve so far, as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from reverie.errors import UserError
from reverie.files import write_atomic
from reverie.recipe import Recipe

FILE_NAME = "checkpoint.safetensors"


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0  # optimiser steps done
    tokens: int = 0
    wall_time_s: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)  # points of the card's curve
    loss_sum: float = 0.0  # of the steps since the newest point
    loss_count: int = 0


def _names(optimizer: Optimizer) -> list[str]:
    return [name for group in optimizer.param_groups for name in group["param_names"]]


def save_checkpoint(
    path: Path, recipe: Recipe, model: nn.Module, optimizers: list[Optimizer], progress: Progress
) -> None:
    """Raises UserError (disk full, no permission); the file that was there before is then untouched."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for i, optimizer in enumerate(optimizers):
        names = _names(optimizer)
        for index, entries in optimizer.state_dict()["state"].items():
            for entry, tensor in entries.items():
                tensors[f"optimizer.{i}.{names[index]}.{entry}"] = tensor
    tensors["rng"] = torch.get_rng_state()
    metadata = {"recipe": recipe.model_dump_json(), "progress": json.dumps(vars(progress))}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, lambda temporary: save_file(contiguous, temporary, metadata=metadata))


@dataclass(frozen=True)
class Checkpoint:
    """What `save_checkpoint` wrote, read back and checked."""

    path: Path
    recipe: Recipe
    progress: Progress
    tensors: dict[str, Tensor]

    def restore_model(self, model: nn.Module) -> None:
        prefix = "model."
        weights = {name.removeprefix(prefix): x for name, x in self.tensors.items() if name.startswith(prefix)}
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(f"{self.path} holds the weights of another model than its recipe describes") from error

    def restore(self, model: nn.Module, optimizers: list[Optimizer]) -> None:
        """Put weights, optimiser states and the random state back."""
        self.restore_model(model)
        for i, optimizer in enumerate(optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for index, name in enumerate(_names(optimizer)):
                prefix = f"optimizer.{i}.{name}."
                entries = {k.removeprefix(prefix): x for k, x in self.tensors.items() if k.startswith(prefix)}
                if entries:
                    state[index] = entries
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        torch.set_rng_state(self.tensors["rng"])


def load_checkpoint(path: Path) -> Checkpoint:
    """Raises UserError where there is no checkpoint, or one that is cut short or was not written by a run."""
    return _read(path, lambda name: True)


def checkpoint_recipe(path: Path) -> Recipe:
    """The recipe alone, without reading the tensors; raises as `load_checkpoint` does."""
    return _read(path, lambda name: False).recipe


def _read(path: Path, wanted: Callable[[str], bool]) -> Checkpoint:
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys() if wanted(name)}  # noqa: SIM118 (no mapping)
        recipe = Recipe.model_validate_json(metadata["recipe"])
        progress = Progress(**json.loads(metadata["progress"]))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise UserError(f"{path} is cut short or damaged ({error}): delete it to start the run afresh") from error
    except (KeyError, TypeError, ValidationError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path} is not a checkpoint that this version of reverie can read: delete it to start afresh"
        ) from error
    return Checkpoint(path, recipe, progress, tensors)
