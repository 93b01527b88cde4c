"""GGUF files, written by hand."""

from __future__ import annotations

import struct


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf(**entries: bytes) -> bytes:
    body = b"".join(string(key.replace("__", ".")) + value for key, value in entries.items())
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, len(entries)) + body


VALUES = {
    "a__int": struct.pack("<Ii", 5, -3),
    "a__flag": struct.pack("<I?", 7, True),
    "a__text": struct.pack("<I", 8) + string("Größe"),
    "a__words": struct.pack("<IIQ", 9, 8, 2) + string("Ġx") + string(""),
    "a__floats": struct.pack("<IIQ3f", 9, 6, 3, 0.5, 1, -2),
    "a__none": struct.pack("<IIQ", 9, 10, 0),
}
