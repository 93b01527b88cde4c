"""`reverie memories`: what is in a store, and that every mistake is one line on stderr."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Reverie, assert_one_line, in_empty_folder, the_json

from reverie.memory.memory import Memory, sleep_over
from reverie.memory.store import MemoryStore
from reverie.sleep import SleepConfig


@pytest.fixture
def reverie(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Reverie:
    return in_empty_folder(monkeypatch, capsys, tmp_path)


@pytest.fixture
def memory(tiny_model: Callable[..., Any]) -> Memory:
    config = SleepConfig(window_size=4, num_sleep_passes=2)
    made = sleep_over(tiny_model("gdn", dtype=torch.float32), torch.zeros(1, 9, dtype=torch.long), config)
    return replace(made, notes={"source": "[b]a\u202e[2J"})


def test_a_store_is_listed(reverie: Reverie, memory: Memory):
    MemoryStore("memories").put("moby-dick", memory)
    Path("memories/foreign.safetensors").write_bytes(b"once upon")
    done = reverie("memories")
    assert (done.code, done.err) == (0, "")
    for part in ("memories: 2 memories, ", "moby-dick", "[b]a�[2J", "foreign", "9 bytes"):
        assert part in done.out
    listed = the_json(reverie("memories", "memories", "--json"))
    assert listed["store"] == "memories"
    foreign, moby = listed["memories"]
    assert (foreign["name"], foreign["info"], foreign["nbytes"]) == ("foreign", None, 9)
    assert foreign["problem"]
    assert (moby["name"], moby["problem"], moby["nbytes"]) == ("moby-dick", None, len(memory.to_bytes()))
    assert (moby["info"]["tokens"], moby["info"]["notes"]) == ([9], {"source": "[b]a\u202e[2J"})
    assert moby["used"].endswith("+00:00")


def test_a_memory_is_deleted(reverie: Reverie, memory: Memory):
    for name in "ab":
        MemoryStore("s").put(name, memory)
    assert reverie("memories", "s", "--delete", "a").out == "deleted a\n"
    assert the_json(reverie("memories", "s", "--delete", "b", "--json")) == {"deleted": "b"}
    assert_one_line(reverie("memories", "s", "--delete", "b"), "there is no memory b in s")
    done = reverie("memories", "s")
    assert (done.code, done.out, done.err) == (0, "", "there are no memories in s\n")
    assert the_json(reverie("memories", "s", "--json")) == {"store": "s", "memories": []}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("foo://x", "cannot open foo://x: Protocol not known: foo"),
        ("file", "cannot list file: file is a file, not a folder"),
        ("s --delete ../x", "the name of a memory is 1 to 100 of the characters"),
        ("s --delete x", "there is no memory x in s"),
    ],
)
def test_a_mistake_is_one_line(reverie: Reverie, arguments: str, sentence: str):
    Path("file").write_bytes(b"")
    assert_one_line(reverie("memories", *arguments.split()), sentence)
