"""A file in pieces small enough to be carried, and whole again: each piece, and the whole, by its SHA-256.

    python benchmarks/gpu/pieces.py cut model.gguf carried --mib 40
    python benchmarks/gpu/pieces.py join carried model.gguf

`cut` leaves model.gguf.000, model.gguf.001, … and model.gguf.pieces.json, which lists them; they may travel one by one.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reverie.errors import UserError
from reverie.files import write_atomic

SUFFIX = ".pieces.json"
_BLOCK = 2**20

# A list of pieces may come from anywhere: a name in it is that of a file in the folder, never a path.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Piece(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: FileName
    size: int = Field(ge=0, description="bytes")
    sha256: Sha256


class Pieces(BaseModel):
    """A file that was cut, and what it was cut into, first to last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    whole: Piece
    parts: tuple[Piece, ...] = Field(min_length=1)


def cut(file: Path, folder: Path, piece_size: int) -> Path:
    """Leave `file` in the folder, in pieces of at most `piece_size` bytes. Returns the list of them.

    Raises UserError where the file cannot be read or the folder not be written.
    """
    if piece_size < 1:
        raise UserError(f"a piece must have at least one byte, got {piece_size}")
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    parts = []
    for index, start in enumerate(range(0, max(file.stat().st_size, 1), piece_size)):
        path = folder / f"{file.name}.{index:03}"
        write_atomic(path, partial(_copy, file, start, piece_size))
        parts.append(_described(path))
    place = folder / f"{file.name}{SUFFIX}"
    pieces = Pieces(whole=_described(file), parts=tuple(parts))
    write_atomic(place, pieces.model_dump_json(indent=1).encode())
    return place


def join(folder: Path, file: Path, name: str | None = None) -> None:
    """Put together in `file` what `cut` left in the folder: `name`, or the only file that lies there in pieces.

    Raises UserError where a piece is missing or is not what was cut; nothing is written then.
    """
    pieces = read_list(folder, name)
    for part in pieces.parts:
        _check(folder / part.name, part)
    write_atomic(file, partial(_append, folder, pieces))


def read_list(folder: Path, name: str | None = None) -> Pieces:
    """The list of the pieces in a folder. Raises UserError where there is none, or none that can be understood."""
    lists = sorted(folder.glob(f"*{SUFFIX}")) if name is None else [folder / f"{name}{SUFFIX}"]
    if len(lists) != 1 or not lists[0].is_file():
        found = ", ".join(path.name for path in lists if path.is_file()) or "none"
        raise UserError(f"{folder} must hold one list of pieces, {name or '*'}{SUFFIX}, and it holds {found}")
    try:
        return Pieces.model_validate_json(lists[0].read_bytes())
    except (OSError, ValidationError):
        raise UserError(f"{lists[0]} is no list of pieces: copy it again") from None


def _check(path: Path, part: Piece) -> None:
    if not path.is_file():
        raise UserError(f"the piece {path} is missing: copy it again")
    if path.stat().st_size != part.size or _sha256(path) != part.sha256:
        raise UserError(f"the piece {path} is not what was cut: copy it again")


def _described(path: Path) -> Piece:
    try:
        return Piece(name=path.name, size=path.stat().st_size, sha256=_sha256(path))
    except ValidationError:
        raise UserError(f"a file to be cut must be named in letters, digits, . _ and -, got {path.name}") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(file: Path, start: int, size: int, to: Path) -> None:
    with file.open("rb") as source, to.open("wb") as target:
        source.seek(start)
        while size and (block := source.read(min(size, _BLOCK))):
            target.write(block)
            size -= len(block)


def _append(folder: Path, pieces: Pieces, to: Path) -> None:
    with to.open("wb") as target:
        for part in pieces.parts:
            with (folder / part.name).open("rb") as source:
                shutil.copyfileobj(source, target, _BLOCK)
    if _sha256(to) != pieces.whole.sha256:
        raise UserError(f"the pieces in {folder} make another file than {pieces.whole.name} was: cut it again")


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 2 where the user is told what is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    cutting = commands.add_parser("cut", help="leave FILE in pieces in FOLDER")
    cutting.add_argument("file", type=Path)
    cutting.add_argument("folder", type=Path)
    cutting.add_argument("--mib", type=float, default=40, help="of a piece, at most")
    joining = commands.add_parser("join", help="put the pieces in FOLDER together in FILE")
    joining.add_argument("folder", type=Path)
    joining.add_argument("file", type=Path)
    given = parser.parse_args(arguments)
    try:
        if given.command == "join":
            join(given.folder, given.file)
            print(f"{given.file}: {given.file.stat().st_size:,} bytes, as they were cut")
        else:
            cut(given.file, given.folder, round(given.mib * 2**20))
            for part in read_list(given.folder, given.file.name).parts:
                print(f"{given.folder / part.name}: {part.size / 2**20:.1f} MiB")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
