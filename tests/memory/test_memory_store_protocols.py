"""A store is the same by every protocol: what was put is what is read, in every process; or one sentence says no."""

from __future__ import annotations

import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.cached import CachingFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations
from hypothesis import given, settings
from hypothesis import strategies as st
from store_files import names, new_folder, refused

from reverie import Memory, MemoryStore
from reverie.memory import shared_folder

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


class OfTests(MemoryFileSystem):
    """A file system in memory with a protocol of its own."""

    protocol = "oftests"

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return super()._strip_protocol(path.removeprefix(f"{cls.protocol}://") if isinstance(path, str) else path)


class Listing(OfTests):
    """It remembers listings until it is told to forget them, as s3fs does."""

    protocol = "listing"

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        path = self._strip_protocol(path)
        if path not in self.dircache:
            self.dircache[path] = super().ls(path, detail=True)
        try:
            found: Any = self.dircache[path]
        except KeyError:
            found = super().ls(path, detail=True)
        return found if detail else [file["name"] for file in found]

    def info(self, path: str, **kwargs: Any) -> Any:
        path = self._strip_protocol(path)
        for file in self._ls_from_cache(self._parent(path)) or []:
            if file["name"] == path:
                return file
        return super().info(path, **kwargs)

    def invalidate_cache(self, path: str | None = None) -> None:
        pass  # not even then


class Sizeless(OfTests):
    """Its listings say no sizes, as the pages of a web server."""

    protocol = "sizeless"

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        files: Any = super().ls(path, detail=True, **kwargs)
        return [file | {"size": None} for file in files] if detail else [file["name"] for file in files]


class Immovable(OfTests):
    """It does not move a file onto another, and does not say so, as HDFS."""

    protocol = "immovable"

    def mv(self, path1: str, path2: str, *args: Any, **kwargs: Any) -> None:
        if not self.exists(path2):
            super().mv(path1, path2, *args, **kwargs)


class Web(OfTests):
    protocol = ("web", "http")  # pyright: ignore[reportAssignmentType]

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return MemoryFileSystem._strip_protocol(path.removeprefix("web://") if isinstance(path, str) else path)


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    for kind in (Listing, Sizeless, Immovable):
        fsspec.register_implementation(kind.protocol, kind, clobber=True)
    fsspec.register_implementation("web", Web, clobber=True)


URLS = (
    "{local}",
    "file://{local}",
    "local://{local}",
    "dir::file://{local}",
    "memory://{folder}",
    "dir::memory://{folder}",
    "listing://{folder}",
    "sizeless://{folder}",
    "memory://{folder}/a[b]*",
    "memory://{folder}/a? #%20~ä",
    "{local}/a[b]*",
)
steps = st.lists(
    st.tuples(st.sampled_from(["put", "delete", "look"]), st.sampled_from("ab"), st.integers(0, 3), st.booleans()),
    min_size=2,
    max_size=6,
)


@pytest.mark.parametrize("url", URLS)
@settings(max_examples=8, deadline=None)
@given(steps=steps)
def test_two_stores_of_one_folder_see_the_same(
    url: str, steps: Any, memories: list[Memory], model: Any, tmp_path_factory: pytest.TempPathFactory
):
    """Whatever was asked before: neither a read nor a listing is remembered."""
    folder = url.format(local=tmp_path_factory.mktemp("store"), folder=new_folder().removeprefix("memory://"))
    stores, held = (MemoryStore(folder), MemoryStore(folder)), dict[str, int]()
    for what, name, which, first in steps:
        store = stores[0 if first else 1]
        if what == "put":
            store.put(name, memories[which])
            held[name] = which
        elif what == "delete" and name in held:
            store.delete(name)
            del held[name]
        for one in stores:
            assert names(one) == sorted(held)
            assert [entry.problem for entry in one.list()] == [None] * len(held)
            assert [key in one for key in "ab"] == [key in held for key in "ab"]
            for key, number in held.items():
                assert one.get(key, model).notes == {"source": f"{number}.txt"}


COPYING = sorted(
    name for name in known_implementations if name.endswith("cache") or name == "cached"
)  # as of fsspec 2024.6, and later ones


@pytest.mark.parametrize("protocol", COPYING)
def test_protocols_that_keep_copies_are_refused_by_name(protocol: str):
    assert issubclass(fsspec.get_filesystem_class(protocol), CachingFileSystem)
    sentence = f"{protocol} keeps copies of files, from which a store would return old memories"
    assert refused(lambda: MemoryStore(f"{protocol}::memory://a")) == f"{sentence}: give memory://a"
    assert refused(lambda: MemoryStore(f"dir::{protocol}::memory://a")) == f"{sentence}: give memory://a"
    assert refused(lambda: MemoryStore(f"{protocol}://a", target_protocol="memory")) == sentence


@pytest.mark.parametrize("url", ["zip::memory://a.zip", "tar::file:///a.tar", "reference::memory://a.json", "zip://a"])
def test_archives_are_refused_by_name(url: str):
    protocol = url.partition(":")[0]
    sentence = f"{protocol} lists its files once, and those of a store change: give a folder that holds them"
    assert refused(lambda: MemoryStore(url)) == sentence


def test_no_protocol_of_fsspec_is_unknown_to_its_user():
    """Every one that needs a package says so in a sentence, with the extra that brings it if reverie has one."""
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    assert set(shared_folder._EXTRAS.values()) <= extras.keys()
    missing = 0
    for protocol in known_implementations:
        try:
            fsspec.get_filesystem_class(protocol)
        except (ImportError, ValueError):
            missing += 1
            sentence = refused(lambda protocol=protocol: MemoryStore(f"{protocol}://host/folder"))
            assert sentence.startswith(f"cannot open {protocol}://host/folder: ")
            extra = shared_folder._EXTRAS.get(protocol)
            assert extra is None or sentence.endswith(f"; run pip install 'reverie[{extra}]'")
    assert missing


@pytest.mark.parametrize("protocol", ["s3", "gs", "abfs", "az", "http", "https"])
def test_the_extra_of_a_usual_protocol(protocol: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(known_implementations, protocol, {"class": "no_such.Package", "err": "Install no_such"})
    monkeypatch.delitem(import_module("fsspec.registry")._registry, protocol, raising=False)
    extra = {"gs": "gcs", "abfs": "azure", "az": "azure", "https": "http"}.get(protocol, protocol)
    told = refused(lambda: MemoryStore(f"{protocol}://host/x"))
    assert told == f"cannot open {protocol}://host/x: Install no_such; run pip install 'reverie[{extra}]'"


def test_a_web_server_is_read_and_not_written(memories: list[Memory], model: Any):
    folder = new_folder()
    MemoryStore(folder).put("a", memories[0])
    url = folder.replace("memory", "web")
    store = MemoryStore(url)
    assert store.get("a", model).notes == memories[0].notes
    told = refused(lambda: store.put("b", memories[1]))
    assert told == f"cannot write {url}/.used/b: a web server's files can only be read"
    assert names(store) == ["a"]


def test_where_a_file_does_not_replace_another_a_put_says_so(memories: list[Memory], model: Any):
    url = new_folder().replace("memory", "immovable")
    store = MemoryStore(url)
    store.put("a", memories[0])
    told = refused(lambda: store.put("a", memories[1]))
    assert told == f"cannot write {url}/.used/a: its file system does not replace a file by another"
    assert store.get("a", model).notes == memories[0].notes
