"""Text of one's own, from files: what comes after the windows that were slept over."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from reverie.errors import UserError, plain
from reverie.files import opened, text_of
from reverie.pretrained.speaker import speaker_of
from reverie.tasks.base import Split, check_draw
from reverie.tasks.reading import ReadingTask, TokenPage, TokenQuestion, generator_of

PROSE, SHARDS = (".txt", ".md"), (".bin", ".npy")
ShardType = Literal["uint16", "uint32"]
_PIECE = 1 << 16  # characters of prose that are made tokens at a time


class TextFiles(ReadingTask):
    """Task: `num_windows` windows of continuous text; predict the window that follows.

    `path` is a file or a folder, with those below it, of prose (.txt or .md, UTF-8) or of token shards, which stay on
    the disk: .bin, bare numbers of `shard_type` in the machine's byte order without a header, or .npy, one dimension
    of any integers.

    The last `held_out` of each file belongs to the tests. What a split has of the files follows one another in the
    order of their names, so a text may go from one file to the next. The first token of the last window is given, the
    others are one question of depth 1, whose answer nothing ends.
    """

    name: Literal["text"] = "text"
    path: str = Field(min_length=1, description="a file or a folder of prose or token shards")
    held_out: float = Field(default=0.1, ge=0, lt=1, description="share of each file, its end, for tests")
    shard_type: ShardType = Field(default="uint16", description="of the numbers in .bin files")
    num_questions: int = Field(default=1, ge=1, le=100_000, description="windows after the text, of which one is used")

    def depths(self) -> range:
        return range(1, 2)

    def pages(
        self, split: Split, seed: int, step: int, examples: range, max_depth: int | None = None
    ) -> list[TokenPage]:
        """The texts of these examples, each from a random token of its split on.

        Raises:
            UserError: a file cannot be read, is not what its ending says, or holds an unknown token, or there is not
                enough text.
        """
        check_draw(seed, step, examples)
        text = _of_split(Path(self.path), self.shard_type, self.tokenizer, split, self.held_out)
        wanted, below = self.text_tokens + self.window_tokens, self.vocab_size
        if len(text) < wanted:
            raise UserError(
                f"{self.path} has {len(text)} tokens in the {split} split at held_out {self.held_out}, but an example "
                f"needs {wanted}: give more text, or fewer or shorter windows"
            )

        def one(example: int) -> TokenPage:
            start = int(generator_of(split, seed, step, example).integers(len(text) - wanted + 1))
            tokens = tuple(text.read(start, wanted, below))
            page, (first, *rest) = tokens[: self.text_tokens], tokens[self.text_tokens :]
            question = TokenQuestion((first,), tuple(rest), kind="text", about="", source=None, depth=1, ends=False)
            return TokenPage(page, (question,))

        return [one(example) for example in examples]


class TokenFile(NamedTuple):
    """Tokens of a file, integers [n], from number `first` on; those of a shard are on the disk."""

    path: Path
    first: int
    tokens: np.ndarray


class TokenFiles:
    """Tokens of several files, one after the other."""

    def __init__(self, files: list[TokenFile]) -> None:
        self._files = files
        self._stops = list(accumulate(len(file.tokens) for file in files))

    def __len__(self) -> int:
        return self._stops[-1]

    def read(self, start: int, length: int, below: int) -> Iterator[int]:
        """`length` tokens from `start` on. Raises UserError if one is not in 0..below-1."""
        at = bisect_right(self._stops, start)
        while length:
            path, first, tokens = self._files[at]
            skipped = start - (self._stops[at] - len(tokens))
            found = tokens[skipped : skipped + length].tolist()
            for i, token in enumerate(found):
                if not 0 <= token < below:
                    raise UserError(
                        f"token {first + skipped + i} of {path} is {token}, but ids must be in 0..{below - 1}: "
                        f"give shards of this tokenizer, or their shard_type"
                    )
            yield from found
            start, length, at = start + len(found), length - len(found), at + 1


@lru_cache(maxsize=16)
def _of_split(path: Path, shard_type: ShardType, tokenizer: str, split: Split, held_out: float) -> TokenFiles:
    """What a split has of each file: the last `held_out` for tests, the others for training."""
    parts = []
    for file, tokens in _every(path, shard_type, tokenizer):
        edge = len(tokens) - int(len(tokens) * held_out)
        first = edge if split == "test" else 0
        parts.append(TokenFile(file, first, tokens[first:] if split == "test" else tokens[:edge]))
    return TokenFiles(parts)


@lru_cache(maxsize=8)
def _every(path: Path, shard_type: ShardType, tokenizer: str) -> list[tuple[Path, np.ndarray]]:
    """All files at a path, and the tokens of each."""
    return [(file, _tokens(file, shard_type, tokenizer)) for file in _files(path)]


def _files(path: Path) -> list[Path]:
    """The file, or those of a folder in the order of their names, without hidden ones."""
    wanted = f"prose ({' or '.join(PROSE)}) or token shards ({' or '.join(SHARDS)})"
    if not path.exists():
        raise UserError(f"there is no file or folder {path}: give a file or a folder of {wanted}")
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"{path} is a pipe or a device, and not a file")
        if path.suffix not in PROSE + SHARDS:
            raise UserError(f"{path} must be {wanted}, by its ending")
        return [path]
    below = [file for file in sorted(path.rglob("*")) if file.is_file() and file.suffix in PROSE + SHARDS]
    found = [file for file in below if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not found:
        raise UserError(f"the folder {path} holds no {wanted}")
    if len({file.suffix in PROSE for file in found}) > 1:
        raise UserError(f"the folder {path} holds both prose and token shards: give a folder of one of them")
    return found


def _tokens(file: Path, shard_type: ShardType, tokenizer: str) -> np.ndarray:
    try:
        if file.suffix == ".bin":
            return _raw_shard(file, np.dtype(shard_type))
        return _array_shard(file) if file.suffix == ".npy" else _prose(file, tokenizer)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error


def _raw_shard(file: Path, kind: np.dtype) -> np.ndarray:
    size = file.stat().st_size
    if size % kind.itemsize:
        raise UserError(f"{file} has {size} bytes, no multiple of the {kind.itemsize} of {kind}: give its shard_type")
    return np.memmap(file, dtype=kind, mode="r") if size else np.empty(0, dtype=kind)


def _array_shard(file: Path) -> np.ndarray:
    wanted = "it must be a .npy file of one dimension of integers"
    try:
        array = np.lib.format.open_memmap(file, mode="r")
    except OSError:
        raise
    except Exception as error:  # a damaged header is parsed as Python's words are
        raise UserError(f"cannot read {file} ({plain(str(error)):.200}): {wanted}") from error
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise UserError(f"{file} holds {array.dtype} numbers of shape {list(array.shape)}: {wanted}")
    return array


def _prose(file: Path, tokenizer: str) -> np.ndarray:
    try:
        with opened(file) as content:
            text = text_of(content.read())
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 at byte {error.start}: save it as UTF-8") from None
    pieces = [np.array(speaker_of(tokenizer).encode(piece)[0], dtype=np.int32) for piece in _pieces(text)]
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int32)


def _pieces(text: str) -> Iterator[str]:
    """Whole lines, until there are enough characters, so that memory does not grow with the file."""
    lines: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line)
        if size >= _PIECE:
            yield "".join(lines)
            lines, size = [], 0
    if lines:
        yield "".join(lines)
