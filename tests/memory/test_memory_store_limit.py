"""With a limit, the least recently used memories are deleted, and nobody else's files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from store_files import FOREIGN, Files, names, refused

from reverie import Memory, MemoryStore


def test_the_limit_deletes_by_use_not_by_put(files: Files, model: Any, memories: list[Memory], size: int):
    store = MemoryStore(files.url, limit_bytes=3 * size)
    for name in "abc":
        store.put(name, memories[0])
    store.get("a", model)
    store.put("d", memories[3])
    assert names(store) == ["a", "c", "d"]
    MemoryStore(files.url, limit_bytes=2 * size).put("c", memories[1])
    assert names(store) == ["c", "d"]
    MemoryStore(files.url, limit_bytes=size).put("e", memories[2])
    assert names(store) == ["e"]
    assert files.names() == {"e.safetensors", ".used/e"}


def test_without_a_limit_nothing_is_deleted(files: Files, memories: list[Memory]):
    for name in "abcd":
        MemoryStore(files.url).put(name, memories[0])
    assert names(MemoryStore(files.url)) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_of_nothing_is_refused(limit: int):
    assert refused(lambda: MemoryStore("x", limit_bytes=limit)) == f"limit_bytes must be at least 1, got {limit}"


def test_one_too_large_is_refused_before_anything_is_touched(files: Files, memories: list[Memory], size: int):
    MemoryStore(files.url).put("a", memories[0])
    before, old = files.names(), files["a.safetensors"]
    for name in ("a", "b"):
        sentence = refused(lambda name=name: MemoryStore(files.url, limit_bytes=size - 1).put(name, memories[1]))
        assert sentence == f"{name} has {size:,} bytes, more than {size - 1:,}, the limit of {files.url}"
    assert files.names() == before
    assert files["a.safetensors"] == old


@pytest.mark.parametrize("marker", [None, b"", b"yesterday", b"\xff\xfe", b"2026-01-01T00:00:00"])
def test_a_marker_that_is_missing_or_broken_counts_as_the_time_of_the_file(
    files: Files, memories: list[Memory], size: int, marker: bytes | None
):
    store, before = MemoryStore(files.url, limit_bytes=2 * size), datetime.now(UTC) - timedelta(seconds=1)
    store.put("a", memories[0])
    files.stamp("a", hours_ago=1)
    store.put("b", memories[1])
    del files[".used/b"]
    if marker is not None:
        files[".used/b"] = marker
    assert before <= store.list()[1].used <= datetime.now(UTC)
    store.put("c", memories[2])
    assert names(store) == ["b", "c"]


def test_a_broken_memory_counts_for_the_limit_and_goes_in_its_turn(files: Files, memories: list[Memory], size: int):
    store = MemoryStore(files.url, limit_bytes=2 * size)
    store.put("a", memories[0])
    files["a.safetensors"] = b"x" * size
    store.put("b", memories[1])
    store.put("c", memories[2])
    assert names(store) == ["b", "c"]


def test_weights_of_someone_else_s_count_but_are_not_deleted(files: Files, memories: list[Memory], size: int):
    store = MemoryStore(files.url, limit_bytes=2 * size + len(FOREIGN))
    files["model.safetensors"] = FOREIGN
    for name in "abc":
        store.put(name, memories[0])
    assert names(store) == ["b", "c", "model"]
    small = MemoryStore(files.url, limit_bytes=size + 1)
    sentence = f"d has {size:,} bytes; of {size + 1:,}, the limit of {files.url}, files that are no memories take"
    assert refused(lambda: small.put("d", memories[0])) == f"{sentence} {len(FOREIGN):,}"
    assert names(store) == ["b", "c", "model"]
    assert files["model.safetensors"] == FOREIGN


def test_what_took_the_place_of_a_memory_is_not_deleted(files: Files, memories: list[Memory], size: int):
    """Its marker is still there, but speaks of another file."""
    store = MemoryStore(files.url, limit_bytes=3 * size)
    store.put("a", memories[0])
    files["a.safetensors"] = FOREIGN
    for name, memory in zip(("b", "c", "d", "e"), (*memories[1:], memories[0]), strict=True):
        store.put(name, memory)
    assert files["a.safetensors"] == FOREIGN
    assert names(store) == ["a", "d", "e"]


def test_other_files_and_folders_are_none_of_its_business(files: Files, memories: list[Memory], size: int):
    store = MemoryStore(files.url, limit_bytes=size)
    others = {"a.txt", "my file.safetensors", ".hidden.safetensors", "folder.safetensors/b", "sub/c.safetensors"}
    for other in others:
        files[other] = b"x" * 99
    store.put("a", memories[0])
    store.put("b", memories[0])
    assert (names(store), store.nbytes, "folder" in store) == (["b"], size, False)
    assert files.names() == others | {"b.safetensors", ".used/b"}
