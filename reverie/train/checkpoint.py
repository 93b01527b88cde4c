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
from reverie.train.distributed import as_kept

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
    deepened: int = 0  # times (`deepening.py`)
    stretch_loss_sum: float = 0.0


def _names(optimizer: Optimizer) -> list[str]:
    return [name for group in optimizer.param_groups for name in group["param_names"]]


def save_checkpoint(
    path: Path, recipe: Recipe, model: nn.Module, optimizers: list[Optimizer], progress: Progress
) -> None:
    """Raises UserError (disk full, no permission); the file that was there before is then untouched."""
    tensors = {**checkpoint_tensors(model, optimizers), "rng": torch.get_rng_state()}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = checkpoint_metadata(recipe, progress)
    write_atomic(path, lambda temporary: save_file(contiguous, temporary, metadata=metadata))


def checkpoint_tensors(model: nn.Module, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """Weights and optimiser states by the names they have in a checkpoint."""
    tensors = _weights(model)
    for i, optimizer in enumerate(optimizers):
        names = _names(optimizer)
        for index, entries in optimizer.state_dict()["state"].items():
            for entry, tensor in entries.items():
                tensors[f"optimizer.{i}.{names[index]}.{entry}"] = tensor
    return tensors


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """By name in a checkpoint; one that has two names (an embedding tied to the head) by the first of them."""
    seen, weights = set[int](), {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            weights[f"model.{name}"] = tensor.detach()
    return weights


def checkpoint_metadata(recipe: Recipe, progress: Progress) -> dict[str, str]:
    return {"recipe": recipe.model_dump_json(), "progress": json.dumps(vars(progress))}


@dataclass(frozen=True)
class Checkpoint:
    """What `save_checkpoint` wrote, read back and checked."""

    path: Path
    recipe: Recipe
    progress: Progress
    tensors: dict[str, Tensor]

    def restore_model(self, model: nn.Module) -> None:
        """Put the weights back, also into a model whose parameters are shared out among processes."""
        weights = _weights(model)
        saved = {name: tensor.shape for name, tensor in self.tensors.items() if name.startswith("model.")}
        if saved != {name: tensor.shape for name, tensor in weights.items()}:
            raise UserError(f"{self.path} holds the weights of another model than its recipe describes")
        self._copy_into(weights)

    def restore(self, model: nn.Module, optimizers: list[Optimizer]) -> None:
        """Put weights, optimiser states and the random state back."""
        self.restore_model(model)
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
        targets = {}
        for i, optimizer in enumerate(optimizers):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for index, (name, parameter) in enumerate(zip(_names(optimizer), parameters, strict=True)):
                prefix = f"optimizer.{i}.{name}."
                saved = {k.removeprefix(prefix): x for k, x in self.tensors.items() if k.startswith(prefix)}
                if saved:
                    states[i][index] = {entry: _room_for(x, parameter) for entry, x in saved.items()}
                    targets |= {f"{prefix}{entry}": x for entry, x in states[i][index].items()}
        self._copy_into(targets)
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        torch.set_rng_state(self.tensors["rng"])

    def _copy_into(self, targets: dict[str, Tensor]) -> None:
        """Fill tensors with those of the same names."""
        for name, target in targets.items():
            target.copy_(as_kept(self.tensors[name], target))


def _room_for(entry: Tensor, parameter: Tensor) -> Tensor:
    """For an entry of an optimiser's state: kept as the parameter is, if it has one number for each of its numbers."""
    alike = entry.shape == parameter.shape
    return torch.zeros_like(parameter, dtype=entry.dtype) if alike else torch.zeros(entry.shape, dtype=entry.dtype)


def load_checkpoint(path: Path) -> Checkpoint:
    """Raises UserError where there is no checkpoint, or one that is cut short or was not written by a run."""
    return _read(path, lambda name: True)


def checkpoint_recipe(path: Path) -> Recipe:
    """The recipe alone, without reading the tensors; raises as `load_checkpoint` does."""
    return _read(path, lambda name: False).recipe


def checkpoint_progress(path: Path) -> Progress:
    """How far the run is, likewise."""
    return _read(path, lambda name: False).progress


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
