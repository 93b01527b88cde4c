"""`read_text`: however often a reading is broken off, the memory is the one of an unbroken one, bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_sleeper import FACTS, tiny_sleeper

from reverie.errors import UserError
from reverie.memory import bookmark
from reverie.memory.memory import Memory, sleep_over
from reverie.sleep import side_by_side
from reverie.talk.chat import Chat
from reverie.talk.reading import Read, begin, read_file, read_text
from reverie.talk.sleeper import Sleeper

BOOK = " ".join([FACTS] * 4)  # 88 words: 11 windows
NOTES = {"source": "book.txt"}


@pytest.fixture(autouse=True)
def two_windows_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "MOST_TOKENS", 2 * 8)


@pytest.fixture
def sleeper(tmp_path: Path) -> Sleeper:
    return tiny_sleeper(tmp_path)


def same(one: Memory, other: Memory) -> bool:
    pairs = zip(one.context.state.fast_weights, other.context.state.fast_weights, strict=True)
    weights = all(x is y if x is None or y is None else torch.equal(x, y) for x, y in pairs)
    counts = torch.equal(one.tokens, other.tokens) and torch.equal(one.passes, other.passes)
    return weights and counts and one.notes == other.notes and one.config == other.config


def send_after(windows: int, number: signal.Signals) -> Any:
    """A report that sends a signal after that window; of any reading."""

    def report(done: int, total: int, tokens: int, held: int) -> None:
        if done == windows:
            os.kill(os.getpid(), number)

    return report


def stop_after(windows: int) -> Any:
    return send_after(windows, signal.SIGTERM)


def read_on(sleeper: Sleeper, out: Path, text: str = BOOK, **kwargs: Any) -> Read:
    memory = begin(out, out.exists(), sleeper, None)
    return read_text(sleeper, sleeper.text(text), out, notes=NOTES, memory=memory, **kwargs)


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
@pytest.mark.parametrize("length", [None, -7], ids=["whole windows", "and a part"])
def test_broken_off_and_gone_on(tmp_path: Path, eviction: str, length: int | None) -> None:
    sleeper = tiny_sleeper(tmp_path, "rule110", eviction=eviction)
    text = "t=2 0 1 1 0 1 0 0 " * 9
    text = text if length is None else text[: 2 * length]
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    done = read_on(sleeper, whole, text)
    assert (done.complete, done.stopped) == (True, None)
    for windows in (2, 4, 6):
        broken = read_on(sleeper, parts, text, report=stop_after(windows))
        assert (broken.complete, broken.stopped) == (False, signal.SIGTERM)
        assert int(broken.memory.tokens[0]) == 8 * windows
        assert broken.memory.notes["complete"] == f"no, {8 * windows} of {done.tokens} tokens"
    assert read_on(sleeper, parts, text).complete
    memories = [Memory.load(path, sleeper) for path in (whole, parts)]
    assert same(*memories)
    assert same(memories[0], replace(sleep_over(sleeper, [sleeper.text(text)]), notes=memories[0].notes))
    assert [memory.history.num_windows for memory in memories if memory.history] == [-(-done.tokens // 8)] * 2
    if eviction == "sliding":
        assert any(entry is not None for entry in memories[0].context.state.cache)


def test_notes_and_progress(sleeper: Sleeper, tmp_path: Path) -> None:
    seen = list[tuple[int, ...]]()
    done = read_on(sleeper, tmp_path / "m.safetensors", report=lambda *now: seen.append(now))
    notes = Memory.load(tmp_path / "m.safetensors", sleeper).notes
    assert notes["source"] == "book.txt"
    assert notes["complete"] == "yes"
    assert len(notes["tokens_sha256"]) == 64
    total = done.tokens // 8
    assert [now[:3] for now in seen] == [(i, total, 8 * i) for i in (*range(0, total, 2), total)]
    assert seen[0][3] == 0
    assert {now[3] for now in seen[1:]} == {done.memory.nbytes}
    assert done.summary()["passes"] == 2 * total
    assert f"slept over in {total} windows, {2 * total} passes" in done.sentence()


def test_it_saves_on_the_way(sleeper: Sleeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bookmark, "MOST_LOST_S", 0.0)
    monkeypatch.setattr(bookmark, "SAVING_SHARE", 1.0)
    out, found = tmp_path / "m.safetensors", list[int]()

    def report(windows: int, total: int, tokens: int, held: int) -> None:
        found.append(int(Memory.load(out, sleeper).tokens[0]) if out.exists() else 0)

    done = read_on(sleeper, out, report=report)
    assert found == [0, *(8 * i for i in range(0, done.tokens // 8, 2))]


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
def test_killed_without_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eviction: str) -> None:
    """With a save after every call, those windows are lost that one call reads."""
    sleeper = tiny_sleeper(tmp_path, eviction=eviction)
    monkeypatch.setattr(bookmark, "MOST_LOST_S", 0.0)
    monkeypatch.setattr(bookmark, "SAVING_SHARE", 1.0)
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    done = read_on(sleeper, whole)
    together = 2 if eviction == "hard" else 1
    for windows in (2 * together, 3 * together):
        child = multiprocessing.get_context("fork").Process(
            target=read_on, args=(sleeper, parts), kwargs={"report": send_after(windows, signal.SIGKILL)}
        )
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert int(Memory.load(parts, sleeper).tokens[0]) == 8 * (windows - together)
    assert read_on(sleeper, parts).new_tokens == done.tokens - 8 * 2 * together
    assert same(*(Memory.load(path, sleeper) for path in (whole, parts)))


def test_it_saves_after_the_first_window(sleeper: Sleeper, tmp_path: Path) -> None:
    """Where nothing can be written, hours of reading would be lost."""
    (tmp_path / "file").touch()
    seen = list[int]()
    with pytest.raises(UserError, match="cannot write"):
        read_on(sleeper, tmp_path / "file" / "m.safetensors", report=lambda i, total, tokens, held: seen.append(i))
    assert seen == [0, 2]


def test_a_chat_is_not_read_on(sleeper: Sleeper, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    read_on(sleeper, out, report=stop_after(2))
    Chat(sleeper, Memory.load(out, sleeper)).save(out)
    with pytest.raises(UserError, match="holds a chat, which would be lost: choose another name, or go on with"):
        read_on(sleeper, out)


def test_read_to_the_end_already(sleeper: Sleeper, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    read_on(sleeper, out)
    again = read_on(sleeper, out)
    assert (again.complete, again.new_tokens) == (True, 0)
    assert "nothing was left to read" in again.sentence()


def test_only_the_same_text_goes_on(tmp_path: Path) -> None:
    sleeper, out = tiny_sleeper(tmp_path, "rule110"), tmp_path / "m.safetensors"
    text = "0 1 1 0 1 0 0 1 " * 3
    read_on(sleeper, out, text)
    assert read_on(sleeper, out, text + "1 1 0").tokens == 27  # more was written
    with pytest.raises(UserError, match="has read a shorter text to its end"):
        read_on(sleeper, out, text + "1 1 0 1")
    for other in ("1 " + text + text, "0 1"):
        with pytest.raises(UserError, match="is a memory of another text: choose another name"):
            read_on(sleeper, out, other)
    sleep_over(sleeper, [sleeper.text("0 1")]).save(out)
    with pytest.raises(UserError, match="is no memory that reverie read has made"):
        read_on(sleeper, out, text)


def test_begin(sleeper: Sleeper, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    assert begin(out, False, sleeper, None) is None
    with pytest.raises(UserError, match=f"there is no memory at {out}"):
        begin(out, True, sleeper, None)
    read_on(sleeper, out)
    with pytest.raises(UserError, match=f"{out} is there already: resume it, or choose another name"):
        begin(out, False, sleeper, None)
    assert begin(out, True, sleeper, sleeper.sleep_config) is not None
    with pytest.raises(UserError, match="was begun with other passes or another tolerance"):
        begin(out, True, sleeper, sleeper.sleep_config.model_copy(update={"num_sleep_passes": 3}))
    other = tiny_sleeper(tmp_path / "other", window_size=8)
    assert begin(out, True, other, None) is not None  # the same weights
    for resume in (False, True):
        with pytest.raises(UserError, match=f"{tmp_path} is a folder: give the name of a file in it, such as"):
            begin(tmp_path, resume, sleeper, None)
    longer = replace(sleeper, sleep_config=sleeper.sleep_config.model_copy(update={"window_size": 16}))
    with pytest.raises(UserError, match=r"was made with window_size 8, and the model sleeps with 16"):
        begin(out, True, longer, None)
    with pytest.raises(UserError, match="is a memory of another model"):
        begin(out, True, tiny_sleeper(tmp_path / "other", "depo"), None)


def test_passes_of_the_beginning_go_on(sleeper: Sleeper, tmp_path: Path) -> None:
    """Also if the model would now sleep in another way."""
    out = tmp_path / "m.safetensors"
    longer = replace(sleeper, sleep_config=sleeper.sleep_config.model_copy(update={"num_sleep_passes": 5}))
    read_on(longer, out, report=stop_after(3))
    done = read_on(sleeper, out)
    assert int(done.memory.passes[0]) == 5 * done.tokens // 8


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    with pytest.raises(UserError, match=f"cannot read {path}: No such file"):
        read_file(str(path))
    path.write_text("Ünd so.")
    assert read_file(str(path)) == "Ünd so."
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=f"{path} is no text in UTF-8"):
        read_file(str(path))
    path.write_text(" \n")
    with pytest.raises(UserError, match=f"{path} holds no text"):
        read_file(str(path))
    with pytest.raises(UserError, match=f"cannot read {tmp_path}: Is a directory"):
        read_file(str(tmp_path))
