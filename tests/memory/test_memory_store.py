"""What was put can be got, listed and deleted by its name; broken files and refusals are named in a sentence."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations
from hypothesis import given, settings
from hypothesis import strategies as st
from store_files import CONFIG, FOREIGN, Files, names, new_folder, refused

from reverie import Memory, MemoryStore
from reverie.memory import MemoryInfo
from reverie.memory import store as memory_store


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


ALLOWED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
TRICKS = ["", ".", "..", "../x", "a/b", "a\\b", "/a", "-a", ".a", "a" * 101, "a\n", "ä", "a b", "a\0", "*", "a:b", "~"]


@settings(max_examples=60, deadline=None)
@given(name=st.from_regex(ALLOWED, fullmatch=True) | st.text(max_size=120) | st.sampled_from(TRICKS))
def test_a_name_works_or_is_refused_and_leaves_nothing(memories: list[Memory], model: Any, name: str):
    files = Files("memory://names")
    store = MemoryStore(files.url)
    if ALLOWED.fullmatch(name):
        store.put(name, memories[0])
        assert name in store
        assert names(store) == [name]
        store.get(name, model)
        store.delete(name)
    else:
        calls = (lambda: store.put(name, memories[0]), lambda: store.get(name, model), lambda: store.delete(name))
        sentence = "the name of a memory is 1 to 100 of the characters a-z, A-Z, 0-9, "
        assert all(refused(call).startswith(sentence) for call in calls)
    assert name not in store
    assert files.names() == set()


def test_tricks_with_paths_touch_nothing(tmp_path: Path, memories: list[Memory]):
    store = MemoryStore(tmp_path / "store")
    (tmp_path / "x.safetensors").write_bytes(b"")
    for name in TRICKS:
        assert name not in store
        assert "of the characters" in refused(lambda name=name: store.put(name, memories[0]))
        assert "of the characters" in refused(lambda name=name: store.delete(name))
    assert os.listdir(tmp_path) == ["x.safetensors"]


BROKEN = {"empty": b"", "short": b"12", "huge": b"\xff" * 40, "text": b"once upon a time, ", "foreign": FOREIGN}


def test_what_is_no_memory_is_listed_with_its_problem_and_can_be_deleted(
    files: Files, model: Any, memories: list[Memory]
):
    store, whole = MemoryStore(files.url), memories[0].to_bytes()
    store.put("whole", memories[0])
    for name, data in {**BROKEN, "cut": whole[:99], "shorter": whole[:-10]}.items():
        files[f"{name}.safetensors"] = data
    entries = {entry.name: entry for entry in store.list()}
    assert list(entries) == ["cut", "empty", "foreign", "huge", "short", "shorter", "text", "whole"]
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
    assert "is cut short" in str(entries["shorter"].problem)


def test_a_header_of_any_length_is_read(files: Files, model: Any, memories: list[Memory], monkeypatch):
    monkeypatch.setattr(memory_store, "FIRST_BYTES", 20)
    store = MemoryStore(files.url)
    store.put("a", memories[0])
    files["b.safetensors"] = memories[0].to_bytes()[:30]
    first, second = store.list()
    assert first.info is not None
    assert first.info.notes == {"source": "0.txt"}
    assert second.problem


def test_where_the_file_system_tells_no_times_it_is_1970(monkeypatch: pytest.MonkeyPatch, memories: list[Memory]):
    def unknown(*_: object) -> None:
        raise NotImplementedError

    files = Files(new_folder())
    files["a.safetensors"] = memories[0].to_bytes()
    monkeypatch.setattr(MemoryFileSystem, "modified", unknown)
    assert [entry.used.year for entry in MemoryStore(files.url).list()] == [1970]


class ReadOnly(MemoryFileSystem):
    """A file system that can be read, but not written."""

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
