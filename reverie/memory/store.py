"""Memories by name in a folder, here or in an object store: one file each, and the least recently used go first.

    NAME.safetensors    a memory as `Memory.save` writes it
    .used/NAME          when it was last put or got, as text: not every file system tells when a file was read

There is no index, so processes that share a folder have nothing to disagree about.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, NamedTuple

from reverie.errors import UserError
from reverie.memory.file import MemoryInfo, header_size, read_info
from reverie.memory.memory import Memory
from reverie.memory.shared_folder import SharedFolder
from reverie.sleep import SleepConfig

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_SUFFIX = ".safetensors"
_HEAD = 2**16  # bytes that are read at first of each file that is listed; most headers are shorter
_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class StoreEntry:
    """What a store knows of one of its files without reading the tensors."""

    name: str
    nbytes: int  # of the file
    used: datetime  # when it was last put or got, UTC; if nothing tells, when the file was written, or 1970
    info: MemoryInfo | None  # None for a file that is no memory, or a broken one
    problem: str | None  # then what is wrong with it, in a sentence


class MemoryStore:
    """Memories by name in a folder: a local path, or a URL that fsspec knows, such as s3://bucket/folder.

    Any number of processes may share it: each of its files is the old one or the new one, never half of either.
    Names are 1 to 100 of the characters a-z, A-Z, 0-9, ".", "_", "-" and begin with neither "." nor "-"; files with
    other names are none of its business.

    With `limit_bytes`, putting a memory deletes those used longest ago until all files NAME.safetensors together are
    no larger. A file of someone else's (no memory, and never put) counts, but is not deleted for it. Where several
    processes put into one object store at the same time, the limit may be passed until the next one puts.

    Args:
        folder: made by the first `put`.
        limit_bytes: 1 or more; without it nothing is deleted.
        options: what fsspec's file system of that protocol takes, such as `anon=True`.

    Everything raises UserError, in one sentence, for what the file system refuses.
    """

    def __init__(self, folder: str | os.PathLike[str], *, limit_bytes: int | None = None, **options: Any) -> None:
        if limit_bytes is not None and limit_bytes < 1:
            raise UserError(f"limit_bytes must be at least 1, got {limit_bytes}")
        self.limit_bytes = limit_bytes
        self._folder = SharedFolder(folder, options)

    def __repr__(self) -> str:
        return f"MemoryStore({self._folder.url!r}, limit_bytes={self.limit_bytes})"

    def put(self, name: str, memory: Memory) -> None:
        """Write a memory, in one move, in place of the one of that name if there is one.

        Raises:
            UserError: the name is not allowed, or the memory does not fit into `limit_bytes`; then all is as before.
        """
        file, data = _file(name), memory.to_bytes()
        if self.limit_bytes is not None and len(data) > self.limit_bytes:
            raise UserError(
                f"{name} has {len(data):,} bytes, more than {self.limit_bytes:,}, the limit of {self._folder.url}"
            )
        with self._folder.alone():
            self._folder.remove_unfinished()
            victims = self._victims(name, len(data))
            self._mark(name, len(data))  # before there is a file, else another process takes it for one used long ago
            self._folder.write(file, data)
            for victim in victims:
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    self._remove(victim)

    def get(self, name: str, model: object, config: SleepConfig | None = None) -> Memory:
        """The memory of that name, for this model; that counts as use.

        Args:
            model, config: as for `Memory.load`.

        Raises:
            UserError: there is none, the name is not allowed, or `Memory.load` would refuse the file.
        """
        file, size = _file(name), 0

        def fetch(end: int) -> bytes:
            nonlocal size
            size = len(data := self._folder.read(file, end))
            return data

        try:
            memory = Memory.fetch(fetch, model, config, where=self._folder.shown(file))
        except FileNotFoundError:
            raise self._absent(name) from None
        with contextlib.suppress(UserError):  # who may read but not write still gets it
            self._mark(name, size)
        return memory

    def delete(self, name: str) -> None:
        """Raises UserError if there is no memory of that name, or the name is not allowed."""
        if not self._folder.has(_file(name)):  # where it is missing, an object store deletes it all the same
            raise self._absent(name)
        try:
            self._remove(name)
        except FileNotFoundError:
            raise self._absent(name) from None

    def __contains__(self, name: object) -> bool:
        """Whether there is a file of that name, sound or not; a name that is not allowed is in no store."""
        return isinstance(name, str) and _NAME.fullmatch(name) is not None and self._folder.has(_file(name))

    @property
    def nbytes(self) -> int:
        """Of all files that `list` tells of."""
        return sum(self._sizes().values())

    def list(self) -> tuple[StoreEntry, ...]:
        """What is there, by name, broken files included; reads the headers of the files, not their tensors."""
        sizes = self._sizes()
        used, infos = self._last_use(sizes), self._infos(sizes)
        return tuple(
            StoreEntry(
                name=name,
                nbytes=sizes[name],
                used=used[name],
                info=info if isinstance(info, MemoryInfo) else None,
                problem=str(info) if isinstance(info, UserError) else None,
            )
            for name, info in infos.items()
        )

    def _absent(self, name: str) -> UserError:
        others = self._sizes().keys() - {name}  # it may have come meanwhile
        near = get_close_matches(name, sorted(others), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        return UserError(f"there is no memory {name} in {self._folder.url}{hint}")

    def _sizes(self) -> dict[str, int]:
        """By name, in order."""
        sizes = {f.removesuffix(_SUFFIX): size for f, size in self._folder.sizes().items() if f.endswith(_SUFFIX)}
        return {name: sizes[name] for name in sorted(sizes) if _NAME.fullmatch(name)}

    def _infos(self, sizes: Mapping[str, int]) -> dict[str, MemoryInfo | UserError]:
        """Without the files that have gone."""
        heads = self._folder.read_beginnings([_file(name) for name in sizes], _HEAD)
        infos = {name: self._info(name, head, sizes[name]) for name, head in zip(sizes, heads, strict=True)}
        return {name: info for name, info in infos.items() if info is not None}

    def _info(self, name: str, head: bytes | Exception, size: int) -> MemoryInfo | UserError | None:
        """None if the file has gone. Every read begins at 0, so that all bytes are those of one file."""
        end, where = _HEAD, _file(name)
        try:
            while isinstance(head, bytes) and (needed := header_size(head, where)) > end:
                head, end = self._folder.read(_file(name), needed), needed
            if isinstance(head, Exception):
                raise head
            try:
                return read_info(head, where, size=size)
            except UserError:  # or it was replaced since the sizes were listed
                return read_info(head, where, size=self._sizes().get(name, size))
        except FileNotFoundError:
            return None
        except UserError as error:
            return error

    def _last_use(self, names: Collection[str]) -> dict[str, datetime]:
        marked = self._marked(names)
        times = {name: marker.used for name, marker in marked.items()}
        return {name: times.get(name) or self._folder.written(_file(name)) or _EPOCH for name in names}

    def _marked(self, names: Collection[str]) -> dict[str, _Marker]:
        """Of those that have a sound one."""
        markers = zip(names, self._folder.read_beginnings([_marker(name) for name in names], 64), strict=True)
        sound = {name: _Marker.read(marker) for name, marker in markers if isinstance(marker, bytes)}
        return {name: marker for name, marker in sound.items() if marker is not None}

    def _mark(self, name: str, nbytes: int) -> None:
        self._folder.write(_marker(name), f"{datetime.now(UTC).isoformat()} {nbytes}".encode())

    def _remove(self, name: str) -> None:
        self._folder.remove(_file(name))
        with contextlib.suppress(FileNotFoundError, UserError):  # there need be none
            self._folder.remove(_marker(name))

    def _victims(self, name: str, nbytes: int) -> Sequence[str]:
        """Whom to delete so that `name` fits with so many bytes, used longest ago first."""
        sizes = {other: size for other, size in self._sizes().items() if other != name}
        excess = sum(sizes.values()) + nbytes - (self.limit_bytes or float("inf"))
        if excess <= 0:
            return []
        used, ours, victims = self._last_use(sizes), self._ours(sizes), []
        for other in sorted(ours, key=used.__getitem__):
            if excess > 0:
                victims.append(other)
                excess -= sizes[other]
        if excess > 0:
            foreign = sum(size for other, size in sizes.items() if other not in ours)
            raise UserError(
                f"{name} has {nbytes:,} bytes; of {self.limit_bytes:,}, the limit of {self._folder.url}, files that "
                f"are no memories take {foreign:,}"
            )
        return victims

    def _ours(self, sizes: Mapping[str, int]) -> Collection[str]:
        """Memories, and what was put as one: not the weights of a model that lie there by mistake."""
        marked = {name for name, marker in self._marked(sizes).items() if marker.nbytes == sizes[name]}
        infos = self._infos({name: size for name, size in sizes.items() if name not in marked})
        return {*marked, *(name for name, info in infos.items() if isinstance(info, MemoryInfo))}


def _file(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UserError(
            'the name of a memory is 1 to 100 of the characters a-z, A-Z, 0-9, ".", "_", "-", and begins with neither '
            f'"." nor "-", got {name[:200]!r}'
        )
    return f"{name}{_SUFFIX}"


def _marker(name: str) -> str:
    return f".used/{name}"


class _Marker(NamedTuple):
    """When a memory was last used, and how large its file was: another file of that name is not ours."""

    used: datetime
    nbytes: int

    @classmethod
    def read(cls, content: bytes) -> _Marker | None:
        """None for anything but an ISO time with its zone, and a number."""
        try:
            time, nbytes = content.decode().split()
            used = datetime.fromisoformat(time)
            return cls(used, int(nbytes)) if used.tzinfo else None
        except ValueError:
            return None
