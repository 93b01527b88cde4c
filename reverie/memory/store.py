"""`MemoryStore`: memories by name in a folder, local or in an object store; the least recently used are evicted.

    NAME.safetensors    a memory as `Memory.save` writes it
    .used/NAME          time of its last put or get, and its size, as text: not every file system has access times

There is no index that could disagree with the files.
"""

import contextlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

from reverie.errors import UserError
from reverie.memory.file import FIRST_BYTES, MemoryInfo, header_size, read_info
from reverie.memory.memory import Memory
from reverie.memory.shared_folder import SharedFolder
from reverie.sleep import SleepConfig

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_SUFFIX = ".safetensors"
_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class StoreEntry:
    """Entry of a store's listing, made without reading tensors."""

    name: str
    nbytes: int  # of the file
    used: datetime  # time of its last put or get, UTC; if unknown that of its last write, or 1970
    info: MemoryInfo | None  # None for a file that is not a memory, or a broken one
    problem: str | None  # then a sentence that says what is wrong with it


class MemoryStore:
    """Memories by name in a folder: a local path, or a URL that fsspec knows, such as s3://bucket/folder.

    Any number of processes may share it, since files are written atomically. Names are 1 to 100 of the characters a-z,
    A-Z, 0-9, ".", "_", "-" and begin with neither "." nor "-"; files with other names are ignored.

    With `limit_bytes`, `put` deletes the least recently used memories until all files NAME.safetensors together have no
    more bytes. Files that are not memories and were never put count, but are not deleted. If several processes put into
    an object store at the same time, the limit may be exceeded until the next put.

    Args:
        folder: the folder, which the first `put` makes.
        limit_bytes: 1 or more; without it nothing is deleted.
        options: keyword arguments of fsspec's file system for that protocol, such as `anon=True`.

    Raises:
        UserError: the URL names a file system that hands out copies, such as simplecache::, or needs a package that is
            not installed; and by all methods, if the file system refuses.
    """

    def __init__(self, folder: str | os.PathLike[str], *, limit_bytes: int | None = None, **options: Any) -> None:
        if limit_bytes is not None and limit_bytes < 1:
            raise UserError(f"limit_bytes must be at least 1, got {limit_bytes}")
        self.limit_bytes = limit_bytes
        self._folder = SharedFolder(folder, options)

    def __repr__(self) -> str:
        return f"MemoryStore({self._folder.url!r}, limit_bytes={self.limit_bytes})"

    def put(self, name: str, memory: Memory) -> None:
        """Write a memory atomically; it replaces one of the same name.

        Raises:
            UserError: the name is not allowed, or the memory does not fit into `limit_bytes`; then nothing is changed.
        """
        file, data = _file(name), memory.to_bytes()
        if self.limit_bytes is not None and len(data) > self.limit_bytes:
            raise UserError(
                f"{name} has {len(data):,} bytes, more than {self.limit_bytes:,}, the limit of {self._folder.url}"
            )
        with self._folder.alone():
            self._folder.remove_unfinished()
            victims = self._victims(name, len(data))
            self._mark(name, len(data))  # before the file exists: another process must not find it unmarked
            self._folder.write(file, data)
            for victim in victims:
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    self._remove(victim)

    def get(self, name: str, model: object, config: SleepConfig | None = None, *, approximate: bool = False) -> Memory:
        """Load the memory of that name for a model, and mark it as used.

        Args:
            model, config, approximate: as for `Memory.load`.

        Raises:
            UserError: there is none, the name is not allowed, or `Memory.load` would refuse the file.
        """
        file, size = _file(name), 0

        def fetch(end: int) -> bytes:
            nonlocal size
            size = len(data := self._folder.read(file, end))
            return data

        try:
            where = self._folder.shown(file)
            memory = Memory.fetch(fetch, model, config, where=where, approximate=approximate)
        except FileNotFoundError:
            raise self._absent(name) from None
        with contextlib.suppress(UserError):  # one may be allowed to read but not to write
            self._mark(name, size)
        return memory

    def delete(self, name: str) -> None:
        """Delete a memory. Raises UserError if there is none of that name, or the name is not allowed."""
        try:
            if not self._folder.has(_file(name)):  # object stores do not complain if it is missing
                raise FileNotFoundError
            self._remove(name)
        except FileNotFoundError:
            raise self._absent(name) from None

    def __contains__(self, name: object) -> bool:
        """True if there is a file of that name, sound or not; False for names that are not allowed."""
        return isinstance(name, str) and _NAME.fullmatch(name) is not None and self._folder.has(_file(name))

    @property
    def nbytes(self) -> int:
        """Bytes of all files that `list` has."""
        return sum(self._sizes().values())

    def list(self) -> tuple[StoreEntry, ...]:
        """Entries in order of names, broken files included; reads the headers of files, not their tensors."""
        sizes = self._sizes()
        used, entries = self._last_use(sizes), []
        for name, info in self._infos(sizes).items():
            sound, problem = (None, str(info)) if isinstance(info, UserError) else (info, None)
            entries.append(StoreEntry(name, sizes[name], used[name], sound, problem))
        return tuple(entries)

    def _absent(self, name: str) -> UserError:
        others = self._sizes().keys() - {name}  # it may have been put meanwhile
        near = get_close_matches(name, sorted(others), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        return UserError(f"there is no memory {name} in {self._folder.url}{hint}")

    def _sizes(self) -> dict[str, int]:
        sizes = {f.removesuffix(_SUFFIX): size for f, size in self._folder.sizes().items() if f.endswith(_SUFFIX)}
        return {name: sizes[name] for name in sorted(sizes) if _NAME.fullmatch(name)}

    def _infos(self, sizes: Mapping[str, int]) -> dict[str, MemoryInfo | UserError]:
        """Descriptions of files by name, or what is wrong with them; without files deleted meanwhile."""
        heads = self._folder.read_beginnings([_file(name) for name in sizes], FIRST_BYTES)
        infos = {name: self._info(name, head, sizes[name]) for name, head in zip(sizes, heads, strict=True)}
        return {name: info for name, info in infos.items() if info is not None}

    def _info(self, name: str, head: bytes | Exception, size: int) -> MemoryInfo | UserError | None:
        """Description of a file whose beginning is `head`, or what is wrong with it; None if it was deleted meanwhile.

        Every read begins at byte 0, so that all bytes are of one version of the file.
        """
        end, where = FIRST_BYTES, _file(name)
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
        times = {name: used for name, (used, _) in self._marked(names).items()}
        return {name: times.get(name) or self._folder.written(_file(name)) or _EPOCH for name in names}

    def _marked(self, names: Collection[str]) -> dict[str, tuple[datetime, int]]:
        """Time of last use, and bytes of the file that was put, by name, of those with a sound marker."""
        markers = zip(names, self._folder.read_beginnings([f".used/{name}" for name in names], 64), strict=True)
        sound = {name: _read_marker(marker) for name, marker in markers if isinstance(marker, bytes)}
        return {name: found for name, found in sound.items() if found is not None}

    def _mark(self, name: str, nbytes: int) -> None:
        self._folder.write(f".used/{name}", f"{datetime.now(UTC).isoformat()} {nbytes}".encode())

    def _remove(self, name: str) -> None:
        self._folder.remove(_file(name))
        with contextlib.suppress(FileNotFoundError, UserError):  # there may be none
            self._folder.remove(f".used/{name}")

    def _victims(self, name: str, nbytes: int) -> Sequence[str]:
        """Memories to delete so that `name` fits with so many bytes, least recently used first.

        Raises UserError if it does not fit, since other files take too much.
        """
        sizes = {other: size for other, size in self._sizes().items() if other != name}
        excess = sum(sizes.values()) + nbytes - (self.limit_bytes or float("inf"))
        if excess <= 0:
            return []
        # Ours are memories, and files that were put; not weights of a model, for one.
        put = {other for other, (_, size) in self._marked(sizes).items() if size == sizes[other]}
        infos = self._infos({other: size for other, size in sizes.items() if other not in put})
        ours = put | {other for other, info in infos.items() if isinstance(info, MemoryInfo)}
        used, victims = self._last_use(sizes), []
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


def _file(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UserError(
            'the name of a memory is 1 to 100 of the characters a-z, A-Z, 0-9, ".", "_", "-", and begins with neither '
            f'"." nor "-", got {name[:200]!r}'
        )
    return f"{name}{_SUFFIX}"


def _read_marker(content: bytes) -> tuple[datetime, int] | None:
    """Parse a marker; None for anything but an ISO time with zone and a number."""
    try:
        time, nbytes = content.decode().split()
        used = datetime.fromisoformat(time)
        return (used, int(nbytes)) if used.tzinfo else None
    except ValueError:
        return None
