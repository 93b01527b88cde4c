"""Checkpoints of runs, read from disk and checked; `train/checkpoint.py` writes them.

A checkpoint is one safetensors file, with the tensors `model.<name>`, `optimizer.<i>.<name>.<entry>` and the random
state `rng`, and recipe and progress as JSON in its metadata, with a SHA-256 of all that. Under FSDP it is a folder:
shards of `torch.distributed.checkpoint` in its safetensors format, which any number of processes can read, and
`run.safetensors`, a checkpoint without weights that lists the shards, with the SHA-256 of each. Pickles are neither
written nor read. Beside the newest checkpoint stands the one before, until the run is done.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from reverie.errors import OldFileWarning, UserError, not_this_version, plain
from reverie.files import file_hash
from reverie.memory.fingerprint import content_hash
from reverie.named import OutsideError
from reverie.recipe import Recipe, recipe_again
from reverie.results.card import CurvePoint

FORMAT, VERSION = "reverie checkpoint", 2  # files from before the version have no checksum
FILE_NAME, BEFORE = "checkpoint.safetensors", "checkpoint-before.safetensors"
LIST_NAME = "run.safetensors"  # in the folder of a sharded checkpoint
_FOLDER = re.compile(r"checkpoint-(\d{9})")


_Count = Annotated[int, Field(strict=True, ge=0, lt=2**53)]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


def _points(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same, if each is a point as cards have them, one step after another."""
    steps = [CurvePoint.model_validate(point).step for point in curve]
    if any(later <= step for step, later in itertools.pairwise([0, *steps])):
        raise ValueError("the steps of the curve do not go up")
    return curve


class Progress(BaseModel):
    """The state of a run apart from tensors: steps, tokens, curve."""

    model_config = ConfigDict(extra="forbid")

    step: _Count = 0  # optimiser steps done
    tokens: _Count = 0
    wall_time_s: _Number = 0.0
    curve: Annotated[list[dict[str, Any]], AfterValidator(_points)] = []  # points of the card's curve
    loss_sum: _Number = 0.0  # of the steps since the newest point
    loss_count: _Count = 0
    deepened: _Count = 0  # how often the curriculum has deepened the questions by success
    stretch_loss_sum: _Number = 0.0  # of the steps since the curriculum last decided


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run, read and checked."""

    path: Path
    recipe: Recipe
    progress: Progress
    tensors: dict[str, Tensor]
    checked: bool  # by its checksum, which files of version 1 lack

    def restore_model(self, model: nn.Module) -> None:
        """Put the weights back, also into a model whose parameters are shared out among processes.

        Raises:
            UserError: the weights are those of another model, or not finite.
        """
        weights = weights_by_name(model)
        saved = {name: (x.shape, x.dtype) for name, x in self.tensors.items() if name.startswith("model.")}
        if saved != {name: (x.shape, x.dtype) for name, x in weights.items()}:
            raise UserError(f"{self.path} holds the weights of another model than its recipe describes")
        self.copy_into(weights)
        self.check_finite(weights)

    def refused(self, why: object) -> UserError:
        """The error that says why these tensors cannot be a run's, and what would be right."""
        return UserError(f"{_damaged(self.path, why)}: {_remedy(self.path)}")

    def check_finite(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises UserError if one of these tensors holds what is no number."""
        for name, x in tensors.items():
            own: Any = x.to_local() if hasattr(x, "to_local") else x  # pyright: ignore[reportAttributeAccessIssue]
            if own.is_floating_point() and not bool(own.isfinite().all()):
                raise self.refused(f"{name} is not finite")

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
            raise self.refused(next(iter(error.failures.values()))[0]) from error


def weights_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by their names in a checkpoint; of two names (an embedding tied to the head) the first counts."""
    seen, weights = set[int](), {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            weights[f"model.{name}"] = tensor.detach()
    return weights


def checkpoint_metadata(
    recipe: Recipe, progress: Progress, tensors: Mapping[str, Tensor], **more: str
) -> dict[str, str]:
    """What a checkpoint holds beside its tensors: version, recipe, progress, and a checksum of them and the tensors."""
    told = {"recipe": recipe.model_dump_json(), "progress": json.dumps(progress.model_dump()), **more}
    return {"format": f"{FORMAT} {VERSION}", **told, "sha256": _checksum(told, sorted(tensors.items()))}


def _checksum(told: Mapping[str, str], tensors: Iterable[tuple[str, Tensor]]) -> str:
    return content_hash(json.dumps(told, sort_keys=True), tensors)


def verify(path: Path) -> None:
    """Raises UserError if a file that was just written is not on the disk as it was given to it."""
    with _readable(path), safe_open(path, framework="pt") as file:
        told = file.metadata()
        tensors = ((name, file.get_tensor(name)) for name in sorted(file.keys()))
        if told.pop("sha256") != _checksum({k: x for k, x in told.items() if k != "format"}, tensors):
            raise UserError(f"cannot write {path}: what is on the disk is not what was written")


def find_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint of a run, None if there is none; a run that was killed while it saved may have several.

    Raises:
        UserError: the file of one process and the folders of several are there, and the file cannot be read.
    """
    places = [place for place in checkpoints_in(out) if place.name != BEFORE]
    if not places:
        return out / BEFORE if (out / BEFORE).exists() else None
    return max(places, key=checkpoint_step) if len({place.is_dir() for place in places}) > 1 else places[-1]


def checkpoints_in(out: Path) -> list[Path]:
    """All checkpoints in the folder of a run: folders, the oldest first, and then files."""
    folders = [path for path in sorted(out.glob("checkpoint-*")) if _FOLDER.fullmatch(path.name)]
    return [*folders, *(out / name for name in (BEFORE, FILE_NAME) if (out / name).exists())]


def checkpoint_step(place: Path) -> int:
    """The step of a checkpoint; raises as `load_checkpoint` does."""
    folder = _FOLDER.fullmatch(place.name)
    return int(folder[1]) if folder else _read(place, with_tensors=False).progress.step


def load_checkpoint(place: Path) -> Checkpoint:
    """The checkpoint in a file, or under FSDP in a folder.

    Warns with `OldFileWarning` where it has no checksum.

    Raises:
        UserError: there is none, or it is cut short or changed, or a part of it is missing, or it was not written by a
            run, or by a newer version. If the checkpoint before it is whole, the sentence says so.
        OutsideError: its recipe names a task that is not here.
    """
    try:
        return _load(place)
    except _DamagedError as error:
        raise UserError(f"{error}: {_remedy(place)}") from error


class _DamagedError(UserError):
    """What is wrong with a checkpoint, without what would be right."""


def _load(place: Path) -> Checkpoint:
    return _load_folder(place) if _FOLDER.fullmatch(place.name) else _read(place)


def _remedy(place: Path) -> str:
    """What to do about a damaged checkpoint: go on from another one, if that is whole."""
    for other in reversed(checkpoints_in(place.parent)):
        if other != place:
            with contextlib.suppress(UserError):
                return f"delete it to go on from step {_load(other).progress.step}, which {other.name} has whole"
    return "delete it to start the run afresh"


def checkpoint_recipe(path: Path) -> Recipe:
    """The recipe in a checkpoint's file, without reading the tensors; raises as `load_checkpoint` does."""
    try:
        return _read(path, with_tensors=False).recipe
    except _DamagedError as error:
        raise UserError(f"{error}: {_remedy(path)}") from error


def _read(path: Path, *, with_tensors: bool = True) -> Checkpoint:
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {path}")
    with _readable(path), safe_open(path, framework="pt") as file:
        told = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in (sorted(file.keys()) if with_tensors else ())}
    old = _check_version(path, told.pop("format", None))
    try:
        recipe = recipe_again(told["recipe"])
        progress = Progress.model_validate(json.loads(told["progress"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, OutsideError):
            raise OutsideError(f"{path} cannot be read here: {error}") from error
        raise _DamagedError(f"{path} is not a checkpoint that this version of reverie can read") from error
    if old:
        warnings.warn(
            f"{path} is from before checkpoints had a checksum: damage to it may go unnoticed", OldFileWarning, 2
        )
    elif with_tensors and told.pop("sha256", None) != _checksum(told, tensors.items()):
        raise _DamagedError(f"{path} was changed after it was written, or damaged")
    return Checkpoint(path, recipe, progress, tensors, not old)


def _check_version(path: Path, told: str | None) -> bool:
    """True if a checkpoint is from before versions. Raises UserError if it is no checkpoint, or newer than this."""
    if told is None:
        return True
    found = re.fullmatch(rf"{FORMAT} ([0-9]{{1,9}})", told)
    if found is None:
        raise _DamagedError(f"{path} is not a checkpoint that this version of reverie can read")
    if (number := int(found[1])) > VERSION:
        raise not_this_version(path, number, VERSION)
    return False


def _load_folder(place: Path) -> ShardedCheckpoint:
    run = _read(place / LIST_NAME)
    with _readable(place), safe_open(place / LIST_NAME, framework="pt") as file:
        shards = json.loads(file.metadata()["shards"])
        if not isinstance(shards, dict) or any(Path(name).name != name or "\0" in name for name in shards):
            raise ValueError("its list of shards is none")
    for name, known in shards.items():
        size, sha256 = known if isinstance(known, list) and len(known) == 2 else (known, None)  # version 1 has none
        if not (place / name).is_file():
            raise _DamagedError(f"{place} lacks {name}, a part of the checkpoint, without which the run cannot go on")
        if (found := (place / name).stat().st_size) != size:
            raise _DamagedError(f"{place} is damaged ({name} has {found} bytes, not {size})")
        if sha256 is not None and file_hash(place / name) != sha256:
            raise _DamagedError(f"{place} is damaged ({name} was changed after it was written)")
    return ShardedCheckpoint(place, run.recipe, run.progress, {**_described(place), **run.tensors}, run.checked)


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
    except OSError as error:
        raise UserError(f"cannot read {place}: {error.strerror or error}") from error
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise _damaged(place, error) from error


def _damaged(place: Path, why: object) -> _DamagedError:
    return _DamagedError(f"{place} is cut short or damaged ({plain(str(why)):.200})")


def _as_kept(tensor: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, or this process's part of it if `target` is shared out among processes."""
    if not hasattr(target, "placements"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(target, DTensor)
    return distribute_tensor(tensor.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
