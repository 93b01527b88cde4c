"""What was put is there until it is deleted or used longest ago, whoever else puts, reads and dies meanwhile."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from reverie.errors import UserError
from reverie.memory import store as memory_store
from reverie.memory.file import MemoryInfo
from reverie.memory.memory import Memory, sleep_over
from reverie.memory.shared_folder import SharedFolder
from reverie.memory.store import MemoryStore
from reverie.sleep import SleepConfig

CONFIG = SleepConfig(window_size=4, num_sleep_passes=2)
FOREIGN = save({"weight": torch.zeros(3)})
fork = multiprocessing.get_context("fork")
_numbers = itertools.count()  # of folders in memory, which all tests share


class Files:
    """The folder of a store, seen past the store."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.fs, self.path = fsspec.url_to_fs(url)

    def __getitem__(self, file: str) -> bytes:
        return self.fs.cat_file(f"{self.path}/{file}")

    def __setitem__(self, file: str, data: bytes) -> None:
        self.fs.makedirs(self.fs._parent(f"{self.path}/{file}"), exist_ok=True)
        self.fs.pipe_file(f"{self.path}/{file}", data)

    def __delitem__(self, file: str) -> None:
        self.fs.rm_file(f"{self.path}/{file}")

    def names(self) -> set[str]:
        files = self.fs.find(self.path) if self.fs.exists(self.path) else []
        return {file.removeprefix(f"{self.path}/") for file in files} - {".lock"}

    def stamp(self, name: str, hours_ago: float) -> None:
        used = (datetime.now(UTC) - timedelta(hours=hours_ago)).isoformat()
        self[f".used/{name}"] = f"{used} {self.fs.size(f'{self.path}/{name}.safetensors')}".encode()


@pytest.fixture(params=["local", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    number = next(_numbers)
    return Files(str(tmp_path / "deep" / "store") if request.param == "local" else f"memory://test/{number}")


@pytest.fixture(scope="session")
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model("attn", "gdn", dtype=torch.float32)


@pytest.fixture(scope="session")
def memories(model: Any) -> list[Memory]:
    """That differ, in equally large files."""
    torch.manual_seed(0)
    made = [sleep_over(model, torch.randint(11, (1, 9)), CONFIG) for _ in range(4)]
    return [replace(memory, notes={"source": f"{i}.txt"}) for i, memory in enumerate(made)]


@pytest.fixture(scope="session")
def size(memories: list[Memory]) -> int:
    (nbytes,) = {len(memory.to_bytes()) for memory in memories}
    return nbytes


def names(store: MemoryStore) -> list[str]:
    return [entry.name for entry in store.list()]


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_put_can_be_got_listed_and_deleted(files: Files, model: Any, memories: list[Memory], size: int):
    store, before = MemoryStore(files.url), datetime.now(UTC)
    assert (store.list(), store.nbytes, "a" in store) == ((), 0, False)
    store.put("b", memories[1])
    store.put("a", memories[0])
    assert store.get("a", model).notes == memories[0].notes
    assert store.get("b", model, CONFIG).notes == memories[1].notes
    first, second = MemoryStore(files.url).list()
    assert (first.name, first.nbytes, first.problem) == ("a", size, None)
    assert isinstance(first.info, MemoryInfo)
    assert (first.info.tokens, first.info.config, first.info.notes) == ([9], CONFIG, {"source": "0.txt"})
    assert before <= first.used <= second.used <= datetime.now(UTC)
    assert (store.nbytes, "a" in store) == (2 * size, True)
    store.delete("a")
    assert (names(store), store.nbytes, "a" in store) == (["b"], size, False)
    assert files.names() == {"b.safetensors", ".used/b"}


def test_putting_replaces(files: Files, model: Any, memories: list[Memory], size: int):
    store = MemoryStore(files.url, limit_bytes=2 * size)
    for memory in memories:
        store.put("a", memory)
        store.put("b", memories[0])
    assert store.get("a", model).notes == memories[-1].notes
    assert files.names() == {"a.safetensors", "b.safetensors", ".used/a", ".used/b"}


def test_what_is_absent_is_refused_with_near_names(files: Files, model: Any, memories: list[Memory]):
    store = MemoryStore(files.url)
    assert refused(lambda: store.get("moby", model)) == f"there is no memory moby in {files.url}"
    store.put("moby-dick", memories[0])
    for call in (lambda: store.get("moby_dick", model), lambda: store.delete("moby_dick")):
        assert refused(call) == f"there is no memory moby_dick in {files.url}; did you mean moby-dick?"
    assert refused(lambda: store.delete("x")) == f"there is no memory x in {files.url}"


ALLOWED = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", fullmatch=True)
TRICKS = ["", ".", "..", "../x", "a/b", "a\\b", "/a", "-a", ".a", "a" * 101, "a\n", "ä", "a b", "a\0", "*", "a:b", "~"]


@settings(max_examples=25, deadline=None)
@given(name=ALLOWED)
def test_every_allowed_name_works(memories: list[Memory], model: Any, name: str):
    store = MemoryStore("memory://names")
    store.put(name, memories[0])
    assert name in store
    assert names(store) == [name]
    store.get(name, model)
    store.delete(name)
    assert name not in store


@settings(max_examples=100, deadline=None)
@given(name=st.text(max_size=120) | st.sampled_from(TRICKS))
def test_a_name_works_or_is_refused_and_leaves_nothing(memories: list[Memory], model: Any, name: str):
    files = Files("memory://refused")
    store = MemoryStore(files.url)
    sentence = ""
    try:
        store.put(name, memories[0])
        store.delete(name)
    except UserError as error:
        sentence = str(error)
    assert files.names() == set()
    if sentence:
        assert sentence.startswith("the name of a memory is 1 to 100 of the characters a-z, A-Z, 0-9, ")
        assert name not in store
        assert [refused(lambda: store.get(name, model)), refused(lambda: store.delete(name))] == [sentence] * 2


@pytest.mark.parametrize("name", TRICKS)
def test_path_tricks_are_refused(tmp_path: Path, memories: list[Memory], name: str):
    store = MemoryStore(tmp_path / "store")
    (tmp_path / "x.safetensors").write_bytes(b"")
    assert name not in store
    assert "of the characters" in refused(lambda: store.put(name, memories[0]))
    assert "of the characters" in refused(lambda: store.delete(name))
    assert os.listdir(tmp_path) == ["x.safetensors"]


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


def test_where_the_file_system_tells_no_times_it_is_1970(monkeypatch: pytest.MonkeyPatch, memories: list[Memory]):
    def unknown(*_: object) -> None:
        raise NotImplementedError

    files = Files(f"memory://test/{next(_numbers)}")
    files["a.safetensors"] = memories[0].to_bytes()
    monkeypatch.setattr(MemoryFileSystem, "modified", unknown)
    assert [entry.used.year for entry in MemoryStore(files.url).list()] == [1970]


BROKEN = {"empty": b"", "short": b"12", "huge": b"\xff" * 40, "text": b"once upon a time, ", "foreign": FOREIGN}


def test_what_is_no_memory_is_listed_with_its_problem_and_can_be_deleted(
    files: Files, model: Any, memories: list[Memory], size: int
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
        assert f"{files.url}/{name}.safetensors" in refused(lambda name=name: store.get(name, model))
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


def test_a_header_of_any_length_is_read(files: Files, model: Any, memories: list[Memory], monkeypatch):
    monkeypatch.setattr(memory_store, "_HEAD", 20)
    store = MemoryStore(files.url)
    store.put("a", memories[0])
    files["b.safetensors"] = memories[0].to_bytes()[:30]
    first, second = store.list()
    assert first.info is not None
    assert first.info.notes == {"source": "0.txt"}
    assert second.problem


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


class ReadOnly(MemoryFileSystem):
    protocol = "readonly"

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return super()._strip_protocol(path.removeprefix("readonly://") if isinstance(path, str) else path)

    def pipe_file(self, path: str, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    def _rm(self, path: str) -> None:
        raise PermissionError(13, "Permission denied", path)


def test_a_store_that_cannot_be_written_can_be_read(memories: list[Memory], model: Any):
    fsspec.register_implementation("readonly", ReadOnly, clobber=True)
    MemoryStore("memory://shared/library").put("a", memories[0])
    before = MemoryStore("memory://shared/library").list()
    store = MemoryStore("readonly://shared/library")
    assert store.get("a", model).notes == memories[0].notes
    assert store.list() == before
    denied = {"write .used/b": lambda: store.put("b", memories[1]), "delete a.safetensors": lambda: store.delete("a")}
    for what, call in denied.items():
        verb, file = what.split()
        assert refused(call) == f"cannot {verb} readonly://shared/library/{file}: Permission denied"
    assert "a" in store


def test_what_cannot_be_opened_is_one_sentence(tmp_path: Path, model: Any, memories: list[Memory], monkeypatch):
    assert refused(lambda: MemoryStore("foo://x")) == "cannot open foo://x: Protocol not known: foo"
    missing = {"class": "no_such_package.FileSystem", "err": "Install no_such_package to\naccess it"}
    monkeypatch.setitem(known_implementations, "missing", missing)
    sentence = "cannot open missing://x: Install no_such_package to access it"
    assert refused(lambda: MemoryStore("missing://x")) == sentence
    path = tmp_path / "file"
    path.write_bytes(b"")
    store = MemoryStore(path)
    for call in (store.list, lambda: store.get("a", model), lambda: store.put("a", memories[0]), lambda: "a" in store):
        assert refused(call).endswith(f": {path} is a file, not a folder")


def test_a_file_url_and_options(tmp_path: Path, memories: list[Memory]):
    MemoryStore(f"file://{tmp_path}/s", auto_mkdir=False).put("a", memories[0])
    assert names(MemoryStore(tmp_path / "s")) == ["a"]


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
    store, sentences, got = MemoryStore(files.url), set(), 0

    def write() -> None:
        for memory in itertools.islice(itertools.cycle(memories), 40):
            MemoryStore(files.url).put("a", memory)
            if memory is memories[-1]:
                MemoryStore(files.url).delete("a")

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        while not writer.done():
            try:
                assert store.get("a", model).notes in [memory.notes for memory in memories]
                got += 1
            except UserError as error:
                sentences.add(str(error))
            assert all(entry.problem is None for entry in store.list())
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
