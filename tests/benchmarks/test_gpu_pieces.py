"""A file in pieces is whole again, or nothing is written and one sentence says which piece to copy again."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reverie.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))
pieces: Any = importlib.import_module("pieces")

CONTENT = bytes(range(256)) * 9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.gguf").write_bytes(CONTENT)
    pieces.cut(tmp_path / "model.gguf", tmp_path / "cut", 1000)
    return tmp_path / "cut"


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=50), st.integers(1, 60))
def test_joined_it_is_what_was_cut(tmp_path_factory: pytest.TempPathFactory, content: bytes, size: int) -> None:
    tmp = tmp_path_factory.mktemp("pieces")
    (tmp / "x").write_bytes(content)
    pieces.cut(tmp / "x", tmp / "cut", size)
    pieces.join(tmp / "cut", tmp / "y")
    assert (tmp / "y").read_bytes() == content
    sizes = [path.stat().st_size for path in (tmp / "cut").glob("x.[0-9]*")]
    assert max(sizes) <= size
    assert len(sizes) == max(-(-len(content) // size), 1)


def test_a_flipped_bit_is_found(folder: Path, tmp_path: Path) -> None:
    part = folder / "model.gguf.001"
    data = bytearray(part.read_bytes())
    data[500] ^= 4
    part.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.gguf\.001 is not what was cut: copy it again$"):
        pieces.join(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_piece_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "model.gguf.002").unlink()
    with pytest.raises(UserError, match=r"model\.gguf\.002 is missing: copy it again$"):
        pieces.join(folder, tmp_path / "out")


def test_pieces_in_another_order_are_another_file(folder: Path, tmp_path: Path) -> None:
    place = folder / "model.gguf.pieces.json"
    found = json.loads(place.read_text())
    found["parts"][:2] = found["parts"][1::-1]
    place.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"make another file than model\.gguf was"):
        pieces.join(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", ".hidden", ""])
def test_a_list_names_files_of_its_folder_alone(folder: Path, tmp_path: Path, name: str) -> None:
    place = folder / "model.gguf.pieces.json"
    found = json.loads(place.read_text())
    found["parts"][0]["name"] = name
    place.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"is no list of pieces: copy it again$"):
        pieces.join(folder, tmp_path / "out")


def test_the_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pieces.main(["cut", str(tmp_path / "model.gguf"), str(tmp_path / "again"), "--mib", "0.001"]) == 0
    assert "model.gguf.002: 0.0 MiB" in capsys.readouterr().out
    assert pieces.main(["join", str(tmp_path / "again"), str(tmp_path / "joined")]) == 0
    assert (tmp_path / "joined").read_bytes() == CONTENT
    for wrong in (["cut", "nowhere", "x"], ["join", str(tmp_path), "x"], ["cut", str(folder), "x", "--mib", "0"]):
        assert pieces.main(wrong) == 2
        [sentence] = capsys.readouterr().err.splitlines()
        assert sentence.startswith("error: ")
