"""Ways to damage a file, drawn by hypothesis: byte by byte, or where its format has a key, a value or a line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

Change = Callable[[st.DrawFn, bytes], bytes]

_DEEP = "nested 5,000 levels deep"
_OTHERS: list[Any] = [
    *(None, True, False, 0, -1, 1, 2.5, 10**12, 2**63, 10**400, -1e308, math.nan, math.inf, "", "x", "0", "\ud800"),
    *("\x1b[2J\nb", "$\\frac{", "字", "long " * 2000, [], {}, [1], [[]], {"a": {"b": [1]}}, {"": None}, _DEEP),
]


def damaged(whole: bytes, changes: tuple[Change, ...]) -> st.SearchStrategy[bytes]:
    """The content of a file after one of these changes, seldom two."""

    @st.composite
    def changed(draw: st.DrawFn) -> bytes:
        content = whole
        for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
            content = draw(st.sampled_from(changes))(draw, content)
        return content

    return changed().filter(lambda content: content != whole)


def in_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    """A bit flipped; bytes cut off, put in, zeroed, swapped or doubled; or nothing left."""
    size = len(whole)
    start, stop = sorted(draw(st.tuples(*[st.integers(0, size)] * 2)))
    short = min(stop, start + 64)
    how = draw(st.sampled_from(["flip", "flip", "flip", "cut", "insert", "zero", "swap", "double", "drop", "empty"]))
    if how == "flip" and start < size:
        return whole[:start] + bytes([whole[start] ^ 1 << draw(st.integers(0, 7))]) + whole[start + 1 :]
    return {
        "flip": whole + b"\0",
        "cut": whole[:start],
        "insert": whole[:start] + draw(st.binary(min_size=1, max_size=20)) + whole[start:],
        "zero": whole[:start] + bytes(short - start) + whole[short:],
        "swap": whole[:start] + whole[short : 2 * short - start] + whole[start:short] + whole[2 * short - start :],
        "double": whole[:stop] + whole[start:],
        "drop": whole[:start] + whole[short:],
        "empty": b"",
    }[how]


def in_json(draw: st.DrawFn, whole: bytes) -> bytes:
    """A key dropped, renamed or added, or a value replaced, also inside strings that hold JSON."""
    try:
        content = json.loads(whole)
    except (ValueError, RecursionError):  # it was damaged before
        return in_bytes(draw, whole)
    places = list(_places(content))
    return _text(_changed(draw, content, draw(st.sampled_from(places)))) if places else in_bytes(draw, whole)


def in_header(draw: st.DrawFn, whole: bytes) -> bytes:
    """The same in the header of a safetensors file, whose length stays right."""
    size = int.from_bytes(whole[:8], "little")
    header = in_json(draw, whole[8 : 8 + size])
    return len(header).to_bytes(8, "little") + header + whole[8 + size :]


def in_lines(draw: st.DrawFn, whole: bytes) -> bytes:
    """A line dropped, doubled or cut, moved to the end, or with another value or key, of JSON or as in TOML."""
    lines = whole.splitlines(keepends=True)
    if not lines:
        return in_bytes(draw, whole)
    at = draw(st.integers(0, len(lines) - 1))
    line, rest = lines[at], [*lines[:at], *lines[at + 1 :]]
    key, equals, value = line.partition(b"=")
    other = _text(draw(st.sampled_from(_OTHERS)))
    how = draw(st.sampled_from(["drop", "double", "cut", "move", "json", "value", "value", "key"]))
    if how == "move":
        return b"".join([*rest, line])
    if how == "json" and line.startswith(b"{"):
        line = in_json(draw, line) + b"\n"
    new = {
        "drop": b"",
        "double": line * 2,
        "cut": line[: len(line) // 2],
        "json": line,
        "value": key + equals + b" " + other + b"\n" if equals else other,
        "key": b"other " + equals + value if equals else b"[other]\n" + line,
    }[how]
    return b"".join([*lines[:at], new, *lines[at + 1 :]])


def _text(value: Any) -> bytes:
    return json.dumps(value).replace(json.dumps(_DEEP), "[" * 5000 + "]" * 5000).encode()


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value in lists and tables, and in strings that hold such."""
    value = _opened(value)
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from _places(part, (*path, key))


def _opened(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(("{", "[")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _changed(draw: st.DrawFn, value: Any, path: tuple[Any, ...]) -> Any:
    inner, (key, *rest) = _opened(value), path
    inner = dict(inner) if isinstance(inner, dict) else list(inner)
    if rest:
        inner[key] = _changed(draw, inner[key], tuple(rest))
    else:
        how = draw(st.sampled_from(["other", "other", "other", "drop", "rename", "add"]))
        other = draw(st.sampled_from(_OTHERS))
        if how == "other":
            inner[key] = other
        elif how == "drop":
            del inner[key]
        elif isinstance(inner, dict):
            inner[f"{key} "] = inner.pop(key) if how == "rename" else other
        else:
            inner.append(other)
    return _text(inner).decode() if isinstance(value, str) else inner
