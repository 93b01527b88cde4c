"""What a later session needs of the state folder, in few files of limited size: a tar, cut, each part with its SHA-256.

In order of worth: record, cards, curves, figures and log; the weights of finished runs, in bfloat16 where float32 does
not fit; checkpoints of runs that are going, as far as they fit. What does not is named.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import pieces
import torch
from record import LOG_NAME, RECORD_NAME, Log, Record
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from reverie.errors import UserError
from reverie.files import write_atomic
from reverie.results.checkpoint import FILE_NAME
from reverie.results.run import CARD_NAME

TAR_NAME = "state.tar"
SUMMARY_NAME = "summary.txt"
OTHER_FILES = 3  # beside the parts: their list, the summary, the record
OTHER_BYTES = 2**19  # that those may take
LOG_BYTES = 2**20  # of the log, its end
RESULTS = "results"


class Limits(NamedTuple):
    """Of the folder that is carried away."""

    part_mib: float
    total_mib: float
    max_files: int

    @property
    def part_bytes(self) -> int:
        return int(self.part_mib * 2**20)

    @property
    def tar_bytes(self) -> int:
        """That the tar may have, so that it, cut, and the other files stay inside all limits."""
        return min(int(self.total_mib * 2**20) - OTHER_BYTES, (self.max_files - OTHER_FILES) * self.part_bytes)

    def check(self) -> None:
        """Raises UserError where hardly anything could be carried away."""
        if self.max_files <= OTHER_FILES or not (self.part_mib >= 1 and self.total_mib >= 2):
            raise UserError(
                f"nothing useful fits into {self.max_files} files of {self.part_mib:g} MiB, {self.total_mib:g} MiB "
                f"together: --max-files must be at least {OTHER_FILES + 1}, --part-mib 1 and --total-mib 2"
            )


class Entry(NamedTuple):
    """A file to take along."""

    path: Path
    name: str  # in the tar, and in the state folder that it is restored to

    @property
    def size(self) -> int:
        """In a tar: a header, and blocks of 512 bytes; long names and times may take two headers more."""
        return 2048 + -(-self.path.stat().st_size // 512) * 512


def write(state: Path, out: Path, limits: Limits, record: Record, log: Log) -> None:
    """Fill `out` with the summary, the record and the parts; what an earlier call left there is replaced."""
    room = limits.tar_bytes - 2 * tarfile.RECORDSIZE
    record["left_out"] = []
    record.save()
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob(f"{TAR_NAME}.*"), out / SUMMARY_NAME, out / RECORD_NAME]:
        old.unlink(missing_ok=True)
    _write_page(state, out, [])  # what is read first, should there be no time for the rest
    with tempfile.TemporaryDirectory(dir=state) as folder:
        entries, left_out = chosen(state, room, Path(folder))
        tar = Path(folder) / TAR_NAME
        with tarfile.open(tar, "w") as archive:
            for entry in entries:
                archive.add(entry.path, entry.name, recursive=False)
        pieces.cut(tar, out, limits.part_bytes)
        size = tar.stat().st_size
    for name in left_out:
        log.say(f"left behind, there is no room for it: {name}")
    log.say(
        f"{out}: {len(entries)} files of the state, {size / 2**20:.1f} MiB in {len([*out.glob('state.tar.0*')])} parts"
    )
    record["left_out"] = left_out
    record.save()
    _write_page(state, out, left_out)


def _write_page(state: Path, out: Path, left_out: list[str]) -> None:
    """The record and the summary."""
    shutil.copyfile(state / RECORD_NAME, out / RECORD_NAME)
    summary = state / RESULTS / SUMMARY_NAME
    text = summary.read_text(encoding="utf-8") if summary.is_file() else ""
    text += "".join(f"\nleft behind: {name}" for name in left_out) + "\n"
    write_atomic(out / SUMMARY_NAME, text.encode())


def restore(parts: Path, state: Path) -> bool:
    """Put what `write` left in `parts` into a state folder; False where that has a state already, which is kept.

    Raises UserError where a part is missing or damaged, or the tar holds anything but plain files below the folder.
    """
    if (state / RECORD_NAME).is_file():
        return False
    state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=state) as folder:
        tar, content = Path(folder) / TAR_NAME, Path(folder) / "content"
        pieces.join(parts, tar, TAR_NAME)
        try:
            with tarfile.open(tar, "r:") as archive:
                archive.extractall(content, filter="data")
        except tarfile.TarError as error:
            raise UserError(f"{parts} does not hold a state that can be gone on with: {error}") from None
        if not (content / RECORD_NAME).is_file():
            raise UserError(f"{parts} does not hold a state that can be gone on with: {RECORD_NAME} is missing in it")
        # The record last: without it a folder counts as empty.
        for entry in sorted(content.iterdir(), key=lambda path: path.name == RECORD_NAME):
            os.replace(entry, state / entry.name)
    return True


def chosen(state: Path, room: int, scratch: Path) -> tuple[list[Entry], list[str]]:
    """What goes along within `room` bytes, and the names of what does not."""
    first = [*_small(state, scratch)]
    checkpoints = [Entry(path, _name(path, state)) for path in _unfinished(state)]
    trained, dtype = _finished(state), torch.float32
    if sum(entry.size for entry in (*first, *checkpoints)) + sum(_weights_size(x, dtype) for x in trained) > room:
        dtype = torch.bfloat16
    taken, left_out = [], []

    def take(entry: Entry) -> None:
        nonlocal room
        if entry.size <= room:
            taken.append(entry)
            room -= entry.size
        else:
            left_out.append(f"{entry.name} ({entry.path.stat().st_size / 2**20:.1f} MiB)")

    for entry in first:
        take(entry)
    for checkpoint in trained:
        name, size = _name(checkpoint, state), _weights_size(checkpoint, dtype)
        if size <= room:  # gigabytes are not read in vain
            made = scratch / name
            write_atomic(made, partial(_save_weights, checkpoint, dtype))
            take(Entry(made, name))
        else:
            left_out.append(f"{name} ({size / 2**20:.1f} MiB of weights)")
    for entry in checkpoints:
        take(entry)
    return taken, left_out


def _small(state: Path, scratch: Path) -> Iterator[Entry]:
    yield Entry(state / RECORD_NAME, RECORD_NAME)
    for path in sorted((state / "runs").rglob(CARD_NAME)):
        yield Entry(path, _name(path, state))
    for path in sorted((state / RESULTS).rglob("*")):
        if path.is_file():
            yield Entry(path, _name(path, state))
    for name in (LOG_NAME, "errors.txt"):
        if (state / name).is_file():
            end = scratch / name
            end.write_bytes((state / name).read_bytes()[-LOG_BYTES:])
            yield Entry(end, name)


def _finished(state: Path) -> list[Path]:
    """Checkpoints of finished runs; one that cannot be read is passed over."""
    found = (card.with_name(FILE_NAME) for card in sorted((state / "runs").rglob(CARD_NAME)))
    return [path for path in found if path.is_file() and _weights_size(path, torch.float32)]


def _weights_size(checkpoint: Path, dtype: torch.dtype) -> int:
    """About the bytes of `_save_weights`, from the file's header alone; 0 where it is damaged."""
    try:
        with safe_open(checkpoint, framework="pt") as file:
            slices = [file.get_slice(name) for name in _weight_names(file)]
            sizes = [prod(x.get_shape()) * (dtype.itemsize if "F" in x.get_dtype() else 8) for x in slices]
            metadata = sum(map(len, (file.metadata() or {}).values()))
    except (OSError, SafetensorError):
        return 0
    return sum(sizes) + 2 * metadata + 200 * len(sizes) + 4096


def _save_weights(checkpoint: Path, dtype: torch.dtype, path: Path) -> None:
    """A checkpoint that can be evaluated, and begun with, but not gone on from."""
    with safe_open(checkpoint, framework="pt") as file:
        tensors = {name: _rounded(file.get_tensor(name), dtype) for name in _weight_names(file)}
        save_file(tensors, path, metadata=file.metadata())


def _weight_names(file: Any) -> list[str]:
    return [name for name in file.keys() if name.startswith("model.")]  # noqa: SIM118 (no mapping)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() and x.itemsize > dtype.itemsize else x


def _unfinished(state: Path) -> list[Path]:
    found = sorted((state / "runs").rglob(FILE_NAME), key=lambda path: path.stat().st_size)
    return [path for path in found if not (path.parent / CARD_NAME).is_file()]


def _name(path: Path, state: Path) -> str:
    return path.relative_to(state).as_posix()
