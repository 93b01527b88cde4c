"""Checkpoints of runs, read from disk and checked; `train/checkpoint.py` writes them.

A checkpoint is one safetensors file, with the tensors `model.<name>`, `optimizer.<i>.<name>.<entry>` and the random
state `rng`, and recipe and progress as JSON in its metadata. Under FSDP it is a folder: shards of
`torch.distributed.checkpoint` in its safetensors format, which any number of processes can read, and `run.safetensors`,
a checkpoint without weights that lists the shards. Pickles are neither written nor read.
"""

import contextlib
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from reverie.errors import UserError
from reverie.recipe import Recipe, recipe_again

FILE_NAME = "checkpoint.safetensors"
LIST_NAME = "run.safetensors"  # in the folder of a sharded checkpoint
_FOLDER = re.compile(r"checkpoint-(\d{9})")


@dataclass
class Progress:
    """The state of a run apart from tensors: steps, tokens, curve."""

    step: int = 0  # optimiser steps done
    tokens: int = 0
    wall_time_s: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)  # points of the card's curve
    loss_sum: float = 0.0  # of the steps since the newest point
    loss_count: int = 0
    deepened: int = 0  # how often the curriculum has deepened the questions by success
    stretch_loss_sum: float = 0.0  # of the steps since the curriculum last decided


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run, read and checked."""

    path: Path
    recipe: Recipe
    progress: Progress
    tensors: dict[str, Tensor]

    def restore_model(self, model: nn.Module) -> None:
        """Put the weights back, also into a model whose parameters are shared out among processes.

        Raises:
            UserError: the weights are those of another model.
        """
        weights = weights_by_name(model)
        saved = {name: tensor.shape for name, tensor in self.tensors.items() if name.startswith("model.")}
        if saved != {name: tensor.shape for name, tensor in weights.items()}:
            raise UserError(f"{self.path} holds the weights of another model than its recipe describes")
        self.copy_into(weights)

    def copy_into(self, targets: dict[str, Tensor]) -> None:
        """Fill tensors with those of the same names."""
        for name, target in targets.items():
            target.copy_(_as_kept(self.tensors[name], target))


class ShardedCheckpoint(Checkpoint):
    """A checkpoint whose `tensors` have shapes and dtypes alone; each process reads the parts it needs."""

    def copy_into(self, targets: dict[str, Tensor]) -> None:
        """Fill tensors with those of the same names, from the shards."""
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        alone = not dist.is_initialized()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # that is what `alone` says
                load(targets, storage_reader=HuggingFaceStorageReader(str(self.path)), no_dist=alone)
        except CheckpointException as error:
            raise _damaged(self.path, next(iter(error.failures.values()))[0]) from error


def weights_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by their names in a checkpoint; of two names (an embedding tied to the head) the first counts."""
    seen, weights = set[int](), {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            weights[f"model.{name}"] = tensor.detach()
    return weights


def checkpoint_metadata(recipe: Recipe, progress: Progress) -> dict[str, str]:
    """Recipe and progress, as a checkpoint holds them beside its tensors."""
    return {"recipe": recipe.model_dump_json(), "progress": json.dumps(vars(progress))}


def find_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint of a run, None if there is none; a run that was killed while it saved may have two.

    Raises:
        UserError: there are two, and one cannot be read.
    """
    places = checkpoints_in(out)
    return max(places, key=checkpoint_step) if len(places) > 1 else next(iter(places), None)


def checkpoints_in(out: Path) -> list[Path]:
    """All checkpoints in the folder of a run, files and folders."""
    folders = [path for path in sorted(out.glob("checkpoint-*")) if _FOLDER.fullmatch(path.name)]
    return [*folders, out / FILE_NAME] if (out / FILE_NAME).exists() else folders


def checkpoint_step(place: Path) -> int:
    """The step of a checkpoint; raises as `load_checkpoint` does."""
    folder = _FOLDER.fullmatch(place.name)
    return int(folder[1]) if folder else _read(place, with_tensors=False).progress.step


def load_checkpoint(place: Path) -> Checkpoint:
    """The checkpoint in a file, or under FSDP in a folder.

    Raises:
        UserError: there is none, or it is cut short, or a part of it is missing, or it was not written by a run.
        OutsideError: its recipe names a task that is not here.
    """
    return _load_folder(place) if _FOLDER.fullmatch(place.name) else _read(place)


def checkpoint_recipe(path: Path) -> Recipe:
    """The recipe in a checkpoint's file, without reading the tensors; raises as `load_checkpoint` does."""
    return _read(path, with_tensors=False).recipe


def _read(path: Path, *, with_tensors: bool = True) -> Checkpoint:
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in (file.keys() if with_tensors else ())}
        recipe = recipe_again(metadata["recipe"])
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


def _load_folder(place: Path) -> ShardedCheckpoint:
    run = _read(place / LIST_NAME)
    with _readable(place), safe_open(place / LIST_NAME, framework="pt") as file:
        sizes = json.loads(file.metadata()["shards"])
    for name, size in sizes.items():
        if not (place / name).is_file():
            raise UserError(f"{place} lacks {name}, a part of the checkpoint: without it the run cannot go on")
        if (place / name).stat().st_size != size:
            raise _damaged(place, f"{name} has {(place / name).stat().st_size} bytes, not {size}")
    return ShardedCheckpoint(place, run.recipe, run.progress, {**_described(place), **run.tensors})


def _described(place: Path) -> dict[str, Tensor]:
    """The tensors of all shards by name, on the meta device."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    with _readable(place):
        described = HuggingFaceStorageReader(str(place)).read_metadata().state_dict_metadata
    return {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in described.items()
        if isinstance(entry, TensorStorageMetadata)
    }


@contextlib.contextmanager
def _readable(place: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise _damaged(place, error) from error


def _damaged(place: Path, why: object) -> UserError:
    return UserError(f"{place} is damaged ({why}): delete it to start the run afresh")


def _as_kept(tensor: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, or this process's part of it if `target` is shared out among processes."""
    if not hasattr(target, "placements"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(target, DTensor)
    return distribute_tensor(tensor.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
