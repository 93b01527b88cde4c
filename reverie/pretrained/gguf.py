"""Reader of GGUF files, llama.cpp's format (version 3, little-endian): metadata, and tensors in float32.

The package gguf reads them too, but takes two seconds to list the contents of a file of 100 MB, and transformers, which
uses it, ten seconds more to unpack the tensors.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

# GGUF's types of numbers as format letters of `struct`.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def gguf_metadata(path: Path) -> dict[str, Any]:
    """Metadata of a GGUF file by key. Raises ValueError if the file is not GGUF version 3."""
    with _open(path) as reader:
        return reader.head()[0]


def gguf_tensors(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a GGUF file by name, in float32. Raises ValueError for formats other than F32, F16, Q4_1, Q8_0."""
    with _open(path) as reader:
        metadata, count = reader.head()
        entries = [reader.entry() for _ in range(count)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"its alignment is {alignment!r:.40}")
        start = -(-reader.at // alignment) * alignment
        return {
            name: _unpacked(name, shape, format, start + offset, reader.data) for name, shape, format, offset in entries
        }


_FORMATS = {  # by ggml's number: how many numbers a block holds, and the block's layout
    0: (1, np.dtype([("x", "<f4")])),
    1: (1, np.dtype([("x", "<f2")])),
    3: (32, np.dtype([("scale", "<f2"), ("least", "<f2"), ("halves", "u1", 16)])),  # Q4_1
    8: (32, np.dtype([("scale", "<f2"), ("x", "i1", 32)])),  # Q8_0
}


def _unpacked(name: str, shape: tuple[int, ...], format: int, start: int, data: mmap.mmap) -> np.ndarray:
    """A tensor in float32, which begins at byte `start` of the file."""
    if format not in _FORMATS:
        raise ValueError(f"tensor {name} has format {format}, which is not F32, F16, Q4_1 or Q8_0")
    numbers, block = _FORMATS[format]
    count, rest = divmod(math.prod(shape), numbers)
    if rest:
        raise ValueError(f"tensor {name} of shape {list(shape)} is not made of whole blocks of {numbers}")
    if start + count * block.itemsize > len(data):
        raise ValueError("the file ends too early")
    return _float32(np.frombuffer(data, block, count, start)).reshape(shape)


def _float32(blocks: np.ndarray) -> np.ndarray:
    """Blocks as float32, [blocks] or [blocks, numbers]; a copy, since the file is closed afterwards."""
    names = blocks.dtype.names or ()
    if "scale" not in names:
        return blocks["x"].astype(np.float32)
    scale = blocks["scale"].astype(np.float32)[:, None]
    if "least" not in names:
        return blocks["x"] * scale
    halves = blocks["halves"]  # a byte holds number i of a block, and in its upper half number i + 16
    numbers = np.concatenate([halves & 15, halves >> 4], axis=1)
    return numbers * scale + blocks["least"].astype(np.float32)[:, None]


@contextmanager
def _open(path: Path) -> Iterator[_Reader]:
    """A reader at the beginning of a file. Raises ValueError where the file ends too early."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            yield _Reader(data)
        except struct.error:
            raise ValueError("the file ends too early") from None


class _Reader:
    """Reads the values of a file in order; `at` is the next byte."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def head(self) -> tuple[dict[str, Any], int]:
        """Read the metadata, and the number of tensors that are listed after it."""
        magic, version, tensors, entries = self.numbers("4sIQQ")
        if (magic, version) != (b"GGUF", 3):
            raise ValueError(f"it begins with {magic!r}, version {version}, which is not GGUF version 3")
        return {self.string(): self.value() for _ in range(entries)}, tensors

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """Read a tensor's name, shape, format, and offset in bytes from the first tensor."""
        name, (axes,) = self.string(), self.numbers("I")
        shape = self.numbers(f"{axes}Q")[::-1]  # GGUF lists the fastest axis first
        return name, shape, *self.numbers("IQ")

    def value(self) -> Any:
        (kind,) = self.numbers("I")
        if kind != _ARRAY:
            return self.values(kind, 1)[0]
        return self.values(*self.numbers("IQ"))

    def values(self, kind: int, length: int) -> list[Any]:
        if kind == _STRING:
            return [self.string() for _ in range(length)]
        if kind not in _NUMBERS:
            raise ValueError(f"it has a value of type {kind}, which is no number, string, or array of these")
        return list(self.numbers(f"{length}{_NUMBERS[kind]}"))

    def string(self) -> str:
        (length,) = self.numbers("Q")
        (text,) = self.numbers(f"{length}s")
        return text.decode()

    def numbers(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{layout}", self.data, self.at)
        self.at += struct.calcsize(f"<{layout}")
        return values
