"""Files of what people said: for the server alone, whole or not at all, and with names that are no paths."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path

from reverie.errors import UserError
from reverie.files import opened, write_atomic
from reverie.serve.refusal import Refusal

MEMORY = ".safetensors"
ASLEEP = f".idle{MEMORY}"  # of a response whose unfinished window was slept over
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_HEX = re.compile(r"[0-9a-f]{32}")
_COUNTED_S = 10.0
_STALE_S = 3600.0  # age of a temporary file after which its writer is taken to be dead


def checked_name(name: str, param: str = "name") -> str:
    """A name for a memory, which is no path. Raises Refusal for any other."""
    if not _NAME.fullmatch(name):
        sentence = (
            'a name is 1 to 100 of the characters a-z, A-Z, 0-9, ".", "_", "-", and begins with neither "." nor "-"'
        )
        raise Refusal(400, sentence, param=param, code="invalid_name")
    return name


def new_id() -> str:
    """32 hex digits that nobody guesses."""
    return secrets.token_hex(16)


def hex_of(id: str, prefix: str) -> str | None:
    """The hex digits of an id such as "resp_…"; None if it is none."""
    digits = id.removeprefix(prefix)
    return digits if id.startswith(prefix) and _HEX.fullmatch(digits) else None


def owner_of(key: str | None) -> str:
    """The folder of an API key's files. Slow on purpose: the name of a folder must not give away a short key."""
    if key is None:
        return "everybody"
    return hashlib.scrypt(key.encode(), salt=b"reverie serve", n=2**14, r=8, p=1, dklen=16).hex()


def write_private(path: Path, data: bytes) -> None:
    """Write a file of mode 0600, atomically, in a folder of mode 0700. Raises Refusal where there is no room for it."""

    def write(temporary: Path) -> None:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)

    make_folder(path.parent)
    try:
        write_atomic(path, write)
    except UserError as error:
        reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else "it refuses"
        raise Refusal(507, f"the server cannot store it: {reason}", code="storage") from error


def make_folder(folder: Path) -> None:
    """A folder for the user of the server alone, and those above it that are missing."""
    try:
        for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise Refusal(507, f"the server cannot store it: {error.strerror}", code="storage") from error


def stat_stored(path: Path) -> os.stat_result:
    """Of a file that a server wrote, which is no link, pipe or folder. Raises OSError if there is none."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise FileNotFoundError(errno.ENOENT, "it is no file", path)
    return found


def read_stored(path: Path) -> bytes:
    """The bytes of such a file. Raises OSError if there is none, or it cannot be read."""
    stat_stored(path)
    with opened(path) as file:
        return file.read()


def touch(path: Path) -> None:
    """Note that a file was used now, in its time of access; not every file system keeps that by itself."""
    with contextlib.suppress(OSError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def remove(path: Path) -> bool:
    """Remove a file, or a link; False if there was none."""
    try:
        path.unlink()
    except (FileNotFoundError, IsADirectoryError):
        return False
    return True


def bytes_in(folder: Path, suffix: str = MEMORY) -> int:
    """Bytes of a folder's files, without those of folders in it."""
    return sum(size for _, _, size in files_in(folder, suffix))


def files_in(folder: Path, suffix: str = MEMORY) -> list[tuple[float, Path, int]]:
    """When each file was last used, its path and its size; the least recently used first."""
    found = list[tuple[float, Path, int]]()
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(suffix) and not entry.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    if not entry.is_dir(follow_symlinks=False):
                        about = entry.stat(follow_symlinks=False)
                        found.append((about.st_atime, Path(entry.path), about.st_size))
    return sorted(found)


class Held:
    """Bytes of files, counted anew after a while, since other processes write too; it takes long where there are many.

    Args:
        count: counts them.
    """

    def __init__(self, count: Callable[[], int]) -> None:
        self._count, self._known, self._counted = count, 0, -math.inf

    @property
    def bytes(self) -> int:
        if time.monotonic() - self._counted > _COUNTED_S:
            self._known, self._counted = self._count(), time.monotonic()
        return self._known

    def add(self, size: int) -> None:
        """A file of that size was written."""
        self._known += size

    def forget(self) -> None:
        """Files were removed."""
        self._counted = -math.inf


def remove_unfinished(folder: Path) -> None:
    """Remove what writers that were killed have left, below this folder: also what is of responses without sessions."""
    of_responses = (path for end in (".json", ASLEEP) for path in folder.glob(f"*/responses/*{end}"))
    sessions = ((path, path.with_name(path.name.partition(".")[0] + MEMORY)) for path in of_responses)
    for path in (*folder.rglob(".*.tmp*"), *(path for path, session in sessions if not os.path.lexists(session))):
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime > _STALE_S:
                path.unlink()
