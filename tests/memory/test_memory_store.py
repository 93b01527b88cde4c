"""What was put is there until it is deleted or used longest ago."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from store_files import CONFIG, FOREIGN, Files, names, refused

from reverie.memory import store as memory_store
from reverie.memory.file import MemoryInfo
from reverie.memory.memory import Memory
from reverie.memory.store import MemoryStore


def test_what_is_put_can_be_got_listed_and_deleted(files: Files, store_model: Any, memories: list[Memory], size: int):
    store, before = MemoryStore(files.url), datetime.now(UTC)
    assert (store.list(), store.nbytes, "a" in store) == ((), 0, False)
    store.put("b", memories[1])
    store.put("a", memories[0])
    assert store.get("a", store_model).notes == memories[0].notes
    assert store.get("b", store_model, CONFIG).notes == memories[1].notes
    first, second = MemoryStore(files.url).list()
    assert (first.name, first.nbytes, first.problem) == ("a", size, None)
    assert isinstance(first.info, MemoryInfo)
    assert (first.info.tokens, first.info.config, first.info.notes) == ([9], CONFIG, {"source": "0.txt"})
    assert before <= first.used <= second.used <= datetime.now(UTC)
    assert (store.nbytes, "a" in store) == (2 * size, True)
    store.delete("a")
    assert (names(store), store.nbytes, "a" in store) == (["b"], size, False)
    assert files.names() == {"b.safetensors", ".used/b"}


def test_putting_replaces(files: Files, store_model: Any, memories: list[Memory], size: int):
    store = MemoryStore(files.url, limit_bytes=2 * size)
    for memory in memories:
        store.put("a", memory)
        store.put("b", memories[0])
    assert store.get("a", store_model).notes == memories[-1].notes
    assert files.names() == {"a.safetensors", "b.safetensors", ".used/a", ".used/b"}


def test_what_is_absent_is_refused_with_near_names(files: Files, store_model: Any, memories: list[Memory]):
    store = MemoryStore(files.url)
    assert refused(lambda: store.get("moby", store_model)) == f"there is no memory moby in {files.url}"
    store.put("moby-dick", memories[0])
    for call in (lambda: store.get("moby_dick", store_model), lambda: store.delete("moby_dick")):
        assert refused(call) == f"there is no memory moby_dick in {files.url}; did you mean moby-dick?"
    assert refused(lambda: store.delete("x")) == f"there is no memory x in {files.url}"


def test_the_limit_deletes_by_use_not_by_put(files: Files, store_model: Any, memories: list[Memory], size: int):
    store = MemoryStore(files.url, limit_bytes=3 * size)
    for name in "abc":
        store.put(name, memories[0])
    store.get("a", store_model)
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


BROKEN = {"empty": b"", "short": b"12", "huge": b"\xff" * 40, "text": b"once upon a time, ", "foreign": FOREIGN}


def test_what_is_no_memory_is_listed_with_its_problem_and_can_be_deleted(
    files: Files, store_model: Any, memories: list[Memory], size: int
):
    store = MemoryStore(files.url)
    store.put("whole", memories[0])
    for name, data in {**BROKEN, "cut": memories[0].to_bytes()[:99]}.items():
        files[f"{name}.safetensors"] = data
    entries = {entry.name: entry for entry in store.list()}
    assert list(entries) == ["cut", "empty", "foreign", "huge", "short", "text", "whole"]
    assert store.nbytes == sum(entry.nbytes for entry in entries.values())
    for name in entries.keys() - {"whole"}:
        assert entries[name].info is None
        assert entries[name].problem
        assert "\n" not in str(entries[name].problem)
        assert f"{files.url}/{name}.safetensors" in refused(lambda name=name: store.get(name, store_model))
        assert name in store
        store.delete(name)
    assert names(store) == ["whole"]
    assert entries["whole"].problem is None


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


def test_one_that_is_cut_short_is_listed_with_its_problem(files: Files, memories: list[Memory]):
    store = MemoryStore(files.url)
    store.put("a", memories[0])
    files["a.safetensors"] = files["a.safetensors"][:-10]
    [entry] = store.list()
    assert entry.info is None
    assert entry.problem is not None
    assert "is cut short" in entry.problem


def test_other_files_and_folders_are_none_of_its_business(files: Files, memories: list[Memory], size: int):
    store = MemoryStore(files.url, limit_bytes=size)
    others = {"a.txt", "my file.safetensors", ".hidden.safetensors", "folder.safetensors/b", "sub/c.safetensors"}
    for other in others:
        files[other] = b"x" * 99
    store.put("a", memories[0])
    store.put("b", memories[0])
    assert (names(store), store.nbytes, "folder" in store) == (["b"], size, False)
    assert files.names() == others | {"b.safetensors", ".used/b"}


def test_a_header_of_any_length_is_read(files: Files, store_model: Any, memories: list[Memory], monkeypatch):
    monkeypatch.setattr(memory_store, "_HEAD", 20)
    store = MemoryStore(files.url)
    store.put("a", memories[0])
    files["b.safetensors"] = memories[0].to_bytes()[:30]
    first, second = store.list()
    assert first.info is not None
    assert first.info.notes == {"source": "0.txt"}
    assert second.problem
