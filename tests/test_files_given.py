"""Files as users have them: pipes and devices are refused at once; marks and line ends of other systems are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_recipe import tiny_recipe

from reverie.errors import UserError
from reverie.files import opened, text_of
from reverie.memory.memory import Memory
from reverie.memory.store import MemoryStore
from reverie.model import new_model
from reverie.recipe import load_recipe
from reverie.results.card import load_card
from reverie.results.checkpoint import load_checkpoint
from reverie.results.run import load_run
from reverie.talk.reading import read_file


@pytest.fixture(params=["pipe", "device"])
def special(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """What blocks when it is read, or never ends."""
    path = tmp_path / "special.safetensors"
    if request.param == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize(
    "use",
    [
        lambda path: Memory.load(path, new_model(tiny_recipe().hybrid, 0)),
        lambda path: MemoryStore(path.parent).get("special", None),
        lambda path: load_card(path),
        lambda path: load_checkpoint(path),
        lambda path: load_run(path.parent),
        lambda path: load_recipe(path.rename(path.with_suffix(".toml"))),
    ],
    ids=["memory", "store", "card", "checkpoint", "run", "recipe"],
)
def test_pipes_and_devices_are_refused_at_once(special: Path, use: Callable[[Path], object]) -> None:
    with pytest.raises(UserError):
        use(special)


def test_they_are_no_memories_of_a_store(special: Path) -> None:
    store = MemoryStore(special.parent)
    assert store.list() == ()
    assert "special" not in store


def test_only_files_are_opened(tmp_path: Path, special: Path) -> None:
    with pytest.raises(OSError, match="a pipe or a device"):
        opened(special)
    with pytest.raises(OSError, match="Is a directory"):
        opened(tmp_path)
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "none")


def test_a_mark_before_a_text_and_other_line_ends_change_nothing(tmp_path: Path) -> None:
    plain, other = tmp_path / "plain.txt", tmp_path / "other.txt"
    plain.write_bytes("Größe\nzwei\n".encode())
    other.write_bytes("\ufeffGröße\r\nzwei\r\n".encode())
    assert text_of(other.read_bytes()) == text_of(plain.read_bytes())
    assert read_file(str(other)) == read_file(str(plain))
    text = '[task]\nname = "rule110"\n'
    for name, content in (("a", text), ("b", "\ufeff" + text.replace("\n", "\r\n"))):
        (tmp_path / f"{name}.toml").write_bytes(content.encode())
    faults = []
    for name in "ab":
        with pytest.raises(UserError) as caught:
            load_recipe(tmp_path / f"{name}.toml")
        faults.append(str(caught.value))
    assert faults[0] == faults[1]
