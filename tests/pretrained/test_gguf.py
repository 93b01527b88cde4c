"""Metadata and tensors of GGUF files; a broken file is an error, never numbers that are not in it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf_files import VALUES, gguf, string

from reverie.pretrained.gguf import gguf_metadata, gguf_tensors

FORMATS = {"F32": 0, "F16": 1, "Q4_1": 3, "Q8_0": 8}


def listing(head: bytes, *tensors: bytes, count: int | None = None) -> bytes:
    """The head of a file that lists these tensors."""
    number = struct.pack("<Q", len(tensors) if count is None else count)
    return head[:8] + number + head[16:] + b"".join(tensors)


def listed(name: str, shape: tuple[int, ...], format: int, offset: int = 0) -> bytes:
    """An entry of the list of tensors."""
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
    return string(name) + sizes + struct.pack("<IQ", format, offset)


def with_data(head: bytes, *data: bytes) -> bytes:
    """The head, and each tensor's data where it may begin."""
    for part in (b"", *data):
        head += part
        head += bytes(-len(head) % 32)
    return head


def test_metadata(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf(**VALUES) + b"tensors follow")
    assert gguf_metadata(path) == {
        "a.int": -3,
        "a.flag": True,
        "a.text": "Größe",
        "a.words": ["Ġx", ""],
        "a.floats": [0.5, 1.0, -2.0],
        "a.none": [],
    }


def test_metadata_of_a_broken_file(tmp_path: Path) -> None:
    whole, path = gguf(**VALUES), tmp_path / "x.gguf"
    huge = struct.pack("<Q", 2**64 - 1)
    broken = [
        *(whole[:end] for end in range(len(whole))),
        b"GGML" + whole[4:],
        struct.pack("<4sI", b"GGUF", 2) + whole[8:],
        gguf(a=struct.pack("<I", 13)),
        gguf(a=struct.pack("<IIQ", 9, 9, 1) + whole),  # an array of arrays
        gguf(a=struct.pack("<I", 8) + huge + whole),
        gguf(a=struct.pack("<II", 9, 8) + huge + whole),
        gguf(a=struct.pack("<II", 9, 4) + huge + whole),
        gguf(a=struct.pack("<IQ", 8, 1) + b"\xff"),
        whole[:16] + huge + whole[24:],
    ]
    for data in broken:
        path.write_bytes(data)
        with pytest.raises(ValueError):  # noqa: PT011
            gguf_metadata(path)


@pytest.mark.parametrize("format", FORMATS)
def test_tensors_are_unpacked_as_by_the_package_gguf(tmp_path: Path, format: str) -> None:
    quants = pytest.importorskip("gguf").quants
    kind = pytest.importorskip("gguf").GGMLQuantizationType[format]
    x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    packed = quants.quantize(x, kind)
    path = tmp_path / "x.gguf"
    a, b_at = listed("a.weight", (3, 64), FORMATS[format]), -(-packed.nbytes // 32) * 32
    b = np.array([1, -2], np.float32)
    path.write_bytes(with_data(listing(gguf(**VALUES), a, listed("b", (2,), 0, b_at)), packed.tobytes(), b.tobytes()))
    tensors = gguf_tensors(path)
    assert list(tensors) == ["a.weight", "b"]
    assert all(tensor.dtype == np.float32 for tensor in tensors.values())
    np.testing.assert_array_equal(tensors["a.weight"], quants.dequantize(packed, kind))
    np.testing.assert_allclose(tensors["a.weight"], x, atol=0 if format == "F32" else 0.2)
    np.testing.assert_array_equal(tensors["b"], b)


def test_a_broken_list_of_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    whole = with_data(listing(gguf(**VALUES), listed("a", (2, 32), 3)), bytes(40))
    broken = [
        *(whole[:end] for end in range(len(gguf(**VALUES)), len(whole) - 24)),
        with_data(listing(gguf(), listed("a", (2, 32), 2)), bytes(400)),  # Q4_0
        with_data(listing(gguf(), listed("a", (2, 32), 3, offset=2**63)), bytes(40)),
        with_data(listing(gguf(), listed("a", (2**40, 2**40), 0)), bytes(40)),
        listing(gguf(), count=2**63),
    ]
    for data in broken:
        path.write_bytes(data)
        with pytest.raises(ValueError):  # noqa: PT011
            gguf_tensors(path)


@pytest.mark.parametrize(("format", "shape"), [("Q8_0", (40,)), ("Q4_1", (3, 17))])
def test_a_shape_that_is_not_whole_blocks(tmp_path: Path, format: str, shape: tuple[int, ...]) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(with_data(listing(gguf(**VALUES), listed("w", shape, FORMATS[format])), bytes(200)))
    with pytest.raises(ValueError, match="is not made of whole blocks of 32"):
        list(gguf_tensors(path))
