"""Saving a run, and going on from what was saved: one file, or under FSDP a folder to which every process writes.

`results/checkpoint.py` has the format and reads it. Everything is written atomically, without pickles.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from reverie.errors import UserError
from reverie.files import locked, move_into_place, remove_unfinished, write_atomic, writing
from reverie.recipe import Recipe
from reverie.results.checkpoint import (
    FILE_NAME,
    LIST_NAME,
    Checkpoint,
    Progress,
    checkpoint_metadata,
    checkpoints_in,
    find_checkpoint,
    weights_by_name,
)
from reverie.train.distributed import Processes

LOCK_NAME = ".lock"
PATIENCE_S = 2.0  # processes that made data for a killed run hold its lock until they notice


@contextlib.contextmanager
def run_lock(out: Path) -> Iterator[None]:
    """The folder, made if it is missing, for this process alone, and without what a killed one left half-written.

    Raises:
        UserError: another process has it, or nothing can be written there.
    """
    taken = f"another process is training in {out}: wait for it, or choose another folder"
    with locked(out / LOCK_NAME, taken, PATIENCE_S):
        remove_unfinished(out)
        yield


def save_run(
    out: Path, recipe: Recipe, model: nn.Module, optimizers: list[Optimizer], progress: Progress, processes: Processes
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
        for other in set(checkpoints_in(out)) - {place}:
            _remove(other)
    processes.wait()


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
    tensors = weights_by_name(model)
    for i, optimizer in enumerate(optimizers):
        names = _names(optimizer)
        for index, entries in optimizer.state_dict()["state"].items():
            for entry, tensor in entries.items():
                tensors[f"optimizer.{i}.{names[index]}.{entry}"] = tensor
    return tensors


def restore(checkpoint: Checkpoint, model: nn.Module, optimizers: list[Optimizer]) -> None:
    """Put weights, optimiser states and the random state back."""
    checkpoint.restore_model(model)
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    targets = {}
    for i, optimizer in enumerate(optimizers):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, (name, parameter) in enumerate(zip(_names(optimizer), parameters, strict=True)):
            prefix = f"optimizer.{i}.{name}."
            saved = {k.removeprefix(prefix): x for k, x in checkpoint.tensors.items() if k.startswith(prefix)}
            if saved:
                states[i][index] = {entry: _room_for(x, parameter) for entry, x in saved.items()}
                targets |= {f"{prefix}{entry}": x for entry, x in states[i][index].items()}
    checkpoint.copy_into(targets)
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    torch.set_rng_state(checkpoint.tensors["rng"])


def refuse_existing(out: Path) -> None:
    """Raises UserError if there is a run in the folder."""
    if find_checkpoint(out) is not None:
        raise UserError(f"{out} already holds a run: resume it, or choose another folder")


def remove_unfinished_folders(out: Path) -> None:
    """Folders of checkpoints that something broke off. Nobody else may train there."""
    _remove(*out.glob(".checkpoint-*.tmp"))


def _names(optimizer: Optimizer) -> list[str]:
    return [name for group in optimizer.param_groups for name in group["param_names"]]


def _room_for(entry: Tensor, parameter: Tensor) -> Tensor:
    """For an entry of an optimiser's state: kept as the parameter is, if it has one number for each of its numbers."""
    alike = entry.shape == parameter.shape
    return torch.zeros_like(parameter, dtype=entry.dtype) if alike else torch.zeros(entry.shape, dtype=entry.dtype)


def _save_folder(
    place: Path, recipe: Recipe, model: nn.Module, optimizers: list[Optimizer], progress: Progress, processes: Processes
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
            write_atomic(unfinished / LIST_NAME, lambda temporary: save_file(rng, temporary, metadata=metadata))
            move_into_place(unfinished, place)


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
