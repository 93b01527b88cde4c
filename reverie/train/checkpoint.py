"""Saving a run, and going on from what was saved: one file, or under FSDP a folder to which every process writes.

`results/checkpoint.py` has the format and reads it. Everything is written atomically, without pickles.
"""

import contextlib
import copy
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from reverie.errors import UserError
from reverie.files import file_hash, locked, move_into_place, remove_unfinished, write_atomic, writing
from reverie.recipe import Recipe
from reverie.results.checkpoint import (
    BEFORE,
    FILE_NAME,
    LIST_NAME,
    Checkpoint,
    Progress,
    checkpoint_metadata,
    checkpoints_in,
    find_checkpoint,
    verify,
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

    The checkpoint that was there before stays beside the new one, until the run is done.

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
        done = progress.step == recipe.train.steps
        _remove(*[other for other in checkpoints_in(out) if other != place][: None if done else -1])
    processes.wait()


def save_checkpoint(
    path: Path, recipe: Recipe, model: nn.Module, optimizers: list[Optimizer], progress: Progress
) -> None:
    """Raises UserError (disk full, no permission); the file that was there before is then untouched."""
    tensors = {**checkpoint_tensors(model, optimizers), "rng": torch.get_rng_state()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = checkpoint_metadata(recipe, progress, tensors)

    def write(temporary: Path) -> None:
        save_file(tensors, temporary, metadata=metadata)
        verify(temporary)

    write_atomic(path, write, keep=path.with_name(BEFORE))


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
    """Put weights, optimiser states and the random state back.

    Raises:
        UserError: they are not those of this model and these optimisers, or not finite; then some may be back already.
    """
    rng = checkpoint.tensors.get("rng")
    if rng is None or (rng.shape, rng.dtype) != (torch.get_rng_state().shape, torch.uint8):
        raise checkpoint.refused("its random state is none")
    told = checkpoint.progress
    if told.loss_count != told.step - (told.curve[-1]["step"] if told.curve else 0):
        raise checkpoint.refused("the losses of its newest steps are missing")
    # A parameter without gradients has no state. Before there was a checksum, all had some from the first step on.
    may_rest = checkpoint.checked or bool(checkpoint.recipe.train.stages)
    places = [_places(i, optimizer) for i, optimizer in enumerate(optimizers)]
    known = {name for of_one in places for names in of_one.values() for name in names} | {"rng"}
    if unknown := {name for name in checkpoint.tensors if not name.startswith("model.")} - known:
        raise checkpoint.refused(f"no run of this recipe has a tensor {min(unknown)}")
    checkpoint.restore_model(model)
    for optimizer, of_one in zip(optimizers, places, strict=True):
        states, targets = {}, {}
        for index, wanted in of_one.items():
            found = {name for name in wanted if name in checkpoint.tensors}
            if found and found != wanted.keys():
                raise checkpoint.refused(f"it lacks {min(wanted.keys() - found)}")
            for name in found:
                saved, room = checkpoint.tensors[name], wanted[name]
                if (saved.shape, saved.dtype) != (room.shape, room.dtype):
                    raise checkpoint.refused(f"{name} is {saved.dtype} {list(saved.shape)}")
                targets[name] = torch.zeros_like(room)
                states.setdefault(index, {})[name.rsplit(".", 1)[1]] = targets[name]
        lacking = [index for index, wanted in of_one.items() if wanted and index not in states]
        if told.step and lacking and not (states and may_rest):
            raise checkpoint.refused(f"it lacks {min(of_one[lacking[0]])}")
        checkpoint.copy_into(targets)
        checkpoint.check_finite(targets)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    torch.set_rng_state(rng)


def _places(i: int, optimizer: Optimizer) -> dict[int, dict[str, Tensor]]:
    """For each parameter of an optimiser, by index, what it keeps of it after a step: names in a checkpoint, and
    tensors of the same shape, dtype and place."""
    places, names = dict[int, dict[str, Tensor]](), iter(enumerate(_names(optimizer)))
    for group in optimizer.param_groups:
        alike = {(p.shape, p.dtype): p for p in group["params"]}
        kept = {kind: _after_a_step(optimizer, group, p) for kind, p in alike.items()}
        for p in group["params"]:
            index, name = next(names)
            entries = kept[p.shape, p.dtype].items()
            places[index] = {f"optimizer.{i}.{name}.{entry}": x for entry, x in entries}
    return places


def _after_a_step(optimizer: Optimizer, group: dict[str, Any], like: Tensor) -> dict[str, Tensor]:
    """What an optimiser keeps of one parameter after a step."""
    parameter = torch.zeros_like(like).requires_grad_()
    parameter.grad = torch.zeros_like(parameter)
    settings = {key: x for key, x in group.items() if key not in ("params", "param_names")}
    other = copy.copy(optimizer)
    other.state, other.param_groups = defaultdict(dict), [settings | {"params": [parameter], "param_names": [""]}]
    other.step()
    return {entry: x for entry, x in other.state[parameter].items() if isinstance(x, Tensor)}


def refuse_existing(out: Path) -> None:
    """Raises UserError if there is a run in the folder."""
    if find_checkpoint(out) is not None:
        raise UserError(f"{out} already holds a run: resume it, or choose another folder")


def remove_unfinished_folders(out: Path) -> None:
    """Folders of checkpoints that something broke off. Nobody else may train there."""
    _remove(*out.glob(".checkpoint-*.tmp"))


def _names(optimizer: Optimizer) -> list[str]:
    return [name for group in optimizer.param_groups for name in group["param_names"]]


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
            shards = {shard.name: [shard.stat().st_size, file_hash(shard)] for shard in unfinished.iterdir()}
            rng = {"rng": torch.get_rng_state()}
            metadata = checkpoint_metadata(recipe, progress, rng, shards=json.dumps(shards))
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
