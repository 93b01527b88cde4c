"""Plain text as windows of tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from reading_pages import Letters

from reverie.errors import UserError
from reverie.tasks import plain_text
from reverie.tasks.plain_text import plain_windows


@pytest.fixture(autouse=True)
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_text, "speaker_of", lambda name: Letters())


def said(windows: list[list[int]]) -> list[str]:
    return ["".join(map(chr, window)) for window in windows]


def test_windows_of_a_folder_are_whole_and_cover_its_text(tmp_path: Path) -> None:
    """In one order, whatever the text is; line breaks and files are joined by single spaces."""
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("first\n\n line " * 50)
    (tmp_path / "b" / "c.md").write_text("second " * 50)
    (tmp_path / "d.py").write_text("code " * 50)
    windows = plain_windows(str(tmp_path), "letters", 16)
    assert {len(window) for window in windows} == {16}
    text = " ".join(["first line"] * 50) + " " + " " + " ".join(["second"] * 50)
    text = " ".join(text.split())
    wanted = [text[i : i + 16] for i in range(0, len(text) - 15, 16)]
    assert sorted(said(windows)) == sorted(wanted)
    assert windows == plain_windows(str(tmp_path), "letters", 16)
    assert said(windows) != wanted  # shuffled: held-out windows are from everywhere


def test_without_a_path_it_is_the_help_of_python() -> None:
    windows = said(plain_windows("", "letters", 64))
    assert len(windows) > 1000
    assert any("statement" in window for window in windows)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"too short", "holds 0 windows of text, and 48 are needed"),
        (b"\xff\xfe" * 900, "is no text in UTF-8"),
        (None, "cannot read .*: No such file or directory"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / "x.txt").write_bytes(content)
    for place in (tmp_path / "x.txt", *([tmp_path] if content else [])):
        with pytest.raises(UserError, match=sentence):
            plain_windows(str(place), "letters", 16)
