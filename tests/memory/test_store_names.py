"""A name works everywhere, or is refused and leaves nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_files import Files, names, refused

from reverie.errors import UserError
from reverie.memory.memory import Memory
from reverie.memory.store import MemoryStore

ALLOWED = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", fullmatch=True)
TRICKS = ["", ".", "..", "../x", "a/b", "a\\b", "/a", "-a", ".a", "a" * 101, "a\n", "ä", "a b", "a\0", "*", "a:b", "~"]


@settings(max_examples=25, deadline=None)
@given(name=ALLOWED)
def test_every_allowed_name_works(memories: list[Memory], store_model: Any, name: str):
    store = MemoryStore("memory://names")
    store.put(name, memories[0])
    assert name in store
    assert names(store) == [name]
    store.get(name, store_model)
    store.delete(name)
    assert name not in store


@settings(max_examples=100, deadline=None)
@given(name=st.text(max_size=120) | st.sampled_from(TRICKS))
def test_a_name_works_or_is_refused_and_leaves_nothing(memories: list[Memory], store_model: Any, name: str):
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
        assert [refused(lambda: store.get(name, store_model)), refused(lambda: store.delete(name))] == [sentence] * 2


@pytest.mark.parametrize("name", TRICKS)
def test_path_tricks_are_refused(tmp_path: Path, memories: list[Memory], name: str):
    store = MemoryStore(tmp_path / "store")
    (tmp_path / "x.safetensors").write_bytes(b"")
    assert name not in store
    assert "of the characters" in refused(lambda: store.put(name, memories[0]))
    assert "of the characters" in refused(lambda: store.delete(name))
    assert os.listdir(tmp_path) == ["x.safetensors"]
