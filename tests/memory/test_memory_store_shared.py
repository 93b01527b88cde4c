"""Processes that put, read and die at the same time: a memory is the old one, the new one or absent."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from store_files import Files, names, refused

from reverie import Memory, MemoryStore
from reverie.errors import UserError
from reverie.memory.shared_folder import SharedFolder

fork = multiprocessing.get_context("fork")


@pytest.mark.parametrize("age_h", [23, 25])
def test_what_killed_writers_left_is_never_listed_and_goes_after_a_day(
    files: Files, memories: list[Memory], age_h: int
):
    left = f".a.safetensors.{int(time.time()) - age_h * 3600}.0123abcd.tmp"
    files[left] = b"half"
    store = MemoryStore(files.url)
    assert (store.list(), store.nbytes) == ((), 0)
    store.put("b", memories[0])
    assert (left in files.names()) == (age_h < 24)


def test_a_put_that_fails_leaves_the_old_one_and_nothing_else(files: Files, model: Any, memories, monkeypatch):
    store = MemoryStore(files.url)
    store.put("a", memories[0])
    before, old = files.names(), files["a.safetensors"]

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reverie.memory.shared_folder.move_into_place", full)
    monkeypatch.setattr(MemoryFileSystem, "mv", full)
    sentence = refused(lambda: store.put("a", memories[1]))
    assert sentence.startswith(f"cannot write {files.url}/")
    assert sentence.endswith(": No space left on device")
    assert files.names() == before
    assert files["a.safetensors"] == old
    assert store.get("a", model).notes == memories[0].notes  # although its use cannot be noted


def test_a_file_that_goes_between_listing_and_reading_is_skipped(files: Files, model: Any, memories, monkeypatch):
    store = MemoryStore(files.url)
    for name in "ab":
        store.put(name, memories[0])
    sizes = SharedFolder.sizes

    def then_deleted(folder: SharedFolder) -> dict[str, int]:
        found = sizes(folder)
        if "a.safetensors" in found:
            del files["a.safetensors"]
        return found

    monkeypatch.setattr(SharedFolder, "sizes", then_deleted)
    assert names(store) == ["b"]
    monkeypatch.setattr(SharedFolder, "has", lambda *_: True)
    assert refused(lambda: store.delete("a")).startswith("there is no memory a in ")


def test_a_reader_meets_the_old_memory_the_new_one_or_none(files: Files, model: Any, memories: list[Memory]):
    """The writer goes on until a memory was got, and 40 times at least, however the threads take turns."""
    store, sentences, got, enough = MemoryStore(files.url), set(), 0, threading.Event()

    def write() -> None:
        for i, memory in enumerate(itertools.cycle(memories)):
            if i >= 40 and (enough.is_set() or i >= 4000):
                return
            MemoryStore(files.url).put("a", memory)
            if memory is memories[-1]:
                MemoryStore(files.url).delete("a")

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        try:
            while not writer.done():
                try:
                    assert store.get("a", model).notes in [memory.notes for memory in memories]
                    got += 1
                    enough.set()
                except UserError as error:
                    sentences.add(str(error))
                assert all(entry.problem is None for entry in store.list())
        finally:
            enough.set()
        writer.result()
    assert got
    assert sentences <= {f"there is no memory a in {files.url}"}


class Ready:
    """A memory that has been made."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def to_bytes(self) -> bytes:
        return self.data


def put_all(folder: Path, mine: list[str], data: bytes, limit: int | None, start: Any) -> None:
    store = MemoryStore(folder, limit_bytes=limit)
    start.wait()
    for name in mine:
        store.put(name, Ready(data))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("limit", [None, 5])
def test_two_processes_in_one_folder_lose_nothing(
    tmp_path: Path, model: Any, memories: list[Memory], size: int, limit: int | None
):
    """Each puts 20 memories, of which 10 have names that the other one puts too."""
    start, most = fork.Barrier(2), None if limit is None else limit * size
    mine = [[f"{who}{i}" if i % 2 else f"both{i}" for i in range(20)] for who in "ab"]
    data = [memory.to_bytes() for memory in memories[:2]]
    pairs = zip(mine, data, strict=True)
    processes = [fork.Process(target=put_all, args=(tmp_path, *pair, most, start)) for pair in pairs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    store = MemoryStore(tmp_path)
    entries = store.list()
    assert all(entry.problem is None for entry in entries)
    assert all(store.get(entry.name, model).notes in [memory.notes for memory in memories[:2]] for entry in entries)
    assert {entry.name for entry in entries} <= {*mine[0], *mine[1]}
    assert len(entries) == (30 if limit is None else limit)
    assert Files(str(tmp_path)).names() == {
        f(e.name) for e in entries for f in ("{}.safetensors".format, ".used/{}".format)
    }
