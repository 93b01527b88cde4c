"""The real `llm`, its command and its library, with the plugin."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny_sleeper import tiny_run

from reverie.memory.memory import Memory
from reverie.talk.chat import Chat
from reverie.talk.heard import Heard
from reverie.talk.sleeper import load_model

os.environ.setdefault("LLM_LOAD_PLUGINS", "")  # others may be broken here; ours is registered below
llm = pytest.importorskip("llm")
from llm.cli import cli  # noqa: E402
from llm.plugins import pm  # noqa: E402

from reverie.serve import llm_plugin  # noqa: E402


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model called "depo", with a memory "book" in a store."""
    run, memories = tiny_run(tmp_path / "depo", "depo"), tmp_path / "served" / "everybody" / "memories"
    memories.mkdir(parents=True)
    sleeper = load_model(run)
    chat = Chat(sleeper, Memory.empty(sleeper))
    chat.say("k=1 3 4 5 6 7 3 4")
    chat.save(memories / "book.safetensors")
    for name, value in (("MODELS", run), ("STORE", tmp_path / "served")):
        monkeypatch.setenv(f"REVERIE_LLM_{name}", str(value))
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    (tmp_path / "llm").mkdir()
    there = pm.get_plugin("reverie") or next((p for p in pm.get_plugins() if p is llm_plugin), None)
    if there is None:
        pm.register(llm_plugin)
    yield run
    if there is None:
        pm.unregister(llm_plugin)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, list(arguments))


def test_models_and_memories_are_listed(place: Path) -> None:
    listed = run("models", "list").output
    assert "Sleepy: depo\n" in listed
    assert "Sleepy: depo@book\n" in listed


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize("name", ["depo", "depo@book"])
def test_a_conversation_goes_on_as_a_chat_does(place: Path, tmp_path: Path, name: str, forgotten: bool) -> None:
    """From the file of what was heard, of which there is one; and from the log where that file is gone."""
    sleeper = load_model(place)
    memory = Memory.empty(sleeper)
    if "@" in name:
        memory = Memory.load(tmp_path / "served" / "everybody" / "memories" / "book.safetensors", sleeper)
    chat, kept = Chat(sleeper, memory), tmp_path / "llm" / "reverie"
    for i, text in enumerate(("k=1 3", "k=2 4", "k=1 5")):
        done = run(*(["-c"] if i else ["-m", name]), text)
        assert done.exit_code == 0, done.output
        assert done.output.strip() == chat.say(text).strip()
        [file] = kept.glob("*.safetensors")
        assert Heard.of(Memory.load(file, sleeper)).awake == tuple(chat.awake)
        if forgotten:
            file.unlink()
    assert kept.stat().st_mode & 0o777 == 0o700


def test_what_it_cannot_do_is_said(place: Path) -> None:
    for arguments in (("nonsense",), ("-s", "be brief", "k=1 3")):
        done = run("-m", "depo", *arguments)
        assert done.exit_code == 1
        assert done.output.startswith("Error: ")
        assert len(done.output.strip().splitlines()) == 1
