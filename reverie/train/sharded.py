"""Where a run's checkpoint is: one file, or under FSDP a folder to which every process writes what it has.

Such a folder holds safetensors of `torch.distributed.checkpoint`, whose headers say which part of each tensor they are,
so that any number of processes can read them; and `run.safetensors`, a checkpoint without weights, which lists them.
PyTorch's other formats, which are pickles, are neither written nor read.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from reverie.errors import UserError
from reverie.files import move_into_place, write_atomic, writing
from reverie.recipe import Recipe
from reverie.train.checkpoint import (
    FILE_NAME,
    Checkpoint,
    Progress,
    checkpoint_metadata,
    checkpoint_progress,
    checkpoint_tensors,
    load_checkpoint,
    save_checkpoint,
)
from reverie.train.distributed import Processes

_FOLDER = re.compile(r"checkpoint-(\d{9})")
_LIST = "run.safetensors"


def save_run(
    out: Path,
    recipe: Recipe,
    model: nn.Module,
    optimizers: list[Optimizer],
    progress: Progress,
    processes: Processes,
) -> None:
    """Save as one file, or under FSDP as a folder; all processes take part, and none goes on before it is done.

    The checkpoint that was there before stays until the new one is complete.

    Raises:
        UserError: it cannot be written (disk full, no permission).
    """
    place = out / FILE_NAME
    if processes.parallel == "fsdp":
        place = out / f"checkpoint-{progress.step:09d}"
        if not place.exists():  # resumed from this step, nothing is new
            _save_folder(place, recipe, model, optimizers, progress, processes)
    elif processes.is_first:
        save_checkpoint(place, recipe, model, optimizers, progress)
    if processes.is_first:
        for other in set(_places(out)) - {place}:
            _remove(other)
    processes.wait()


def find_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint of a run, if it has one. A run that was killed while it saved may have two.

    Raises:
        UserError: there are two, and one cannot be read.
    """
    places = _places(out)
    return max(places, key=checkpoint_step) if len(places) > 1 else next(iter(places), None)


def checkpoint_step(place: Path) -> int:
    """The step of what `find_checkpoint` has found; raises as `load_run` does."""
    folder = _FOLDER.fullmatch(place.name)
    return int(folder[1]) if folder else checkpoint_progress(place).step


def load_run(place: Path) -> Checkpoint:
    """What `find_checkpoint` has found, of either kind.

    Raises:
        UserError: it is cut short, or a part of it is missing, or it was not written by a run.
    """
    return load_checkpoint(place) if place.name == FILE_NAME else _load_folder(place)


class ShardedCheckpoint(Checkpoint):
    """`tensors` has sizes and number formats alone; of the weights each process reads what it needs."""

    def _copy_into(self, targets: dict[str, Tensor]) -> None:
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


def refuse_existing(out: Path) -> None:
    """Raises UserError if there is a run in the folder."""
    if find_checkpoint(out) is not None:
        raise UserError(f"{out} already holds a run: add --resume to go on with it, or choose another --out")


def remove_unfinished_folders(out: Path) -> None:
    """Folders of checkpoints that something broke off. Nobody else may train there."""
    _remove(*out.glob(".checkpoint-*.tmp"))


def _save_folder(
    place: Path,
    recipe: Recipe,
    model: nn.Module,
    optimizers: list[Optimizer],
    progress: Progress,
    processes: Processes,
) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    unfinished = place.with_name(f".{place.name}.tmp")
    if processes.is_first:
        remove_unfinished_folders(place.parent)
    processes.wait()
    with writing(place):
        try:
            writer = HuggingFaceStorageWriter(str(unfinished), save_distributed=True)
            save(checkpoint_tensors(model, optimizers), storage_writer=writer)
        except CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from error
        if processes.is_first:
            sizes = {shard.name: shard.stat().st_size for shard in unfinished.iterdir()}
            metadata = {**checkpoint_metadata(recipe, progress), "shards": json.dumps(sizes)}
            rng = {"rng": torch.get_rng_state()}
            write_atomic(unfinished / _LIST, lambda temporary: save_file(rng, temporary, metadata=metadata))
            move_into_place(unfinished, place)


def _load_folder(place: Path) -> ShardedCheckpoint:
    run = load_checkpoint(place / _LIST)
    with _readable(place), safe_open(place / _LIST, framework="pt") as file:
        sizes = json.loads(file.metadata()["shards"])
    for name, size in sizes.items():
        if not (place / name).is_file():
            raise UserError(f"{place} lacks {name}, a part of the checkpoint: without it the run cannot go on")
        if (place / name).stat().st_size != size:
            raise _damaged(place, f"{name} has {(place / name).stat().st_size} bytes, not {size}")
    return ShardedCheckpoint(place, run.recipe, run.progress, {**_described(place), **run.tensors})


def _described(place: Path) -> dict[str, Tensor]:
    """The tensors of all shards, whole but without their numbers."""
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


def _places(out: Path) -> list[Path]:
    folders = [path for path in sorted(out.glob("checkpoint-*")) if _FOLDER.fullmatch(path.name)]
    return [*folders, out / FILE_NAME] if (out / FILE_NAME).exists() else folders


def _remove(*places: Path) -> None:
    for place in places:
        if place.is_dir():
            # Out of the way first, in one move: half a folder must not look like a checkpoint.
            gone = place.with_name(f".{place.name.removeprefix('.').removesuffix('.tmp')}.tmp")
            with contextlib.suppress(OSError):
                place.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                place.unlink(missing_ok=True)
