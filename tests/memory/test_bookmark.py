"""When a reading is saved, and what a bookmark keeps of one; the readings themselves are tested where they are made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_sleeper import tiny_sleeper

from reverie.files import CACHE
from reverie.memory import bookmark
from reverie.memory.bookmark import Bookmark, Pace, bookmark_folder
from reverie.memory.memory import Memory, sleep_over
from reverie.talk.sleeper import Sleeper

TEXT = torch.arange(40)[None] % 9


class Clock:
    """In the place of the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bookmark, "time", clock)
    return clock


def losses(clock: Clock, pace: Pace, window_s: float, save_s: float, windows: int = 200) -> tuple[float, float]:
    """The longest time between two saves, from end to begin, and the share of saving."""
    begun = saved = clock.now
    longest = spent = 0.0
    for _ in range(windows):
        clock.now += window_s
        longest = max(longest, clock.now - saved)
        if pace.due():
            with pace.saving():
                clock.now += save_s
            spent, saved = spent + save_s, clock.now
    return longest, spent / (clock.now - begun)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("window_s", "save_s", "most_s"),
    [(0.1, 0.01, 10), (3, 0.2, 10), (7, 0.2, 10), (25, 1, 25), (1, 3, 28), (40, 10, 120)],
)
def test_what_can_be_lost(clock: Clock, window_s: float, save_s: float, most_s: float, at_once: bool) -> None:
    """Ten seconds or one window; where saving takes long, nine times that of it, up to the edge of a window."""
    longest, share = losses(clock, Pace(at_once=at_once), window_s, save_s)
    assert longest <= most_s + 1e-6
    assert share <= 0.101 or at_once


def test_the_first_window_is_saved_where_that_is_asked(clock: Clock) -> None:
    paces = [Pace(at_once=at_once) for at_once in (True, False)]
    clock.now += 0.1
    assert [pace.due() for pace in paces] == [True, False]


@pytest.fixture
def sleeper(tmp_path: Path) -> Sleeper:
    return tiny_sleeper(tmp_path, "depo")


def interrupted(sleeper: Sleeper, folder: Path, windows: int = 2, text: torch.Tensor = TEXT) -> list[str]:
    """Read some windows and be interrupted; the notes of the interruption."""
    try:
        with Bookmark(sleeper, text, sleeper.sleep_config, folder) as mark:
            for i in range(1, windows + 1):
                mark.reached(8 * i, sleep_over(sleeper, text[:, : 8 * i]).context)
            raise KeyboardInterrupt
    except KeyboardInterrupt as interruption:
        return getattr(interruption, "__notes__", [])


def found(sleeper: Sleeper, folder: Path | None, text: torch.Tensor = TEXT, told: list[str] | None = None) -> int:
    tell = (lambda sentence: None) if told is None else told.append
    here = Bookmark(sleeper, text, sleeper.sleep_config, folder, tell).find()
    return 0 if here is None else here[1]


def test_an_interruption_says_where_it_goes_on(sleeper: Sleeper, tmp_path: Path) -> None:
    folder, told = tmp_path / "readings", list[str]()
    [note] = interrupted(sleeper, folder)
    [path] = folder.iterdir()
    assert note == f"the same text goes on after 16 of 40 tokens, kept in {path}"
    assert found(sleeper, folder, told=told) == 16
    assert told == [f"goes on after 16 of 40 tokens, read before and kept in {path}"]
    with Bookmark(sleeper, TEXT, sleeper.sleep_config, folder) as mark:
        mark.find()
    assert list(folder.iterdir()) == []  # done


def test_only_the_same_reading_goes_on(sleeper: Sleeper, tmp_path: Path) -> None:
    folder = tmp_path / "readings"
    interrupted(sleeper, folder)
    assert found(sleeper, folder, TEXT[:, :39]) == 0
    assert found(tiny_sleeper(tmp_path / "other", "rule110"), folder) == 0
    assert found(tiny_sleeper(tmp_path / "c", "depo", num_sleep_passes=3), folder) == 0
    assert found(sleeper, tmp_path / "nowhere") == 0
    assert found(sleeper, None) == 0
    [path] = folder.iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert found(sleeper, folder) == 0
    Memory.empty(sleeper).save(path)
    assert found(sleeper, folder) == 0


def test_nothing_read_leaves_nothing(sleeper: Sleeper, tmp_path: Path) -> None:
    assert interrupted(sleeper, tmp_path / "readings", windows=0) == []
    assert not (tmp_path / "readings").exists()


def test_a_place_that_cannot_be_written(sleeper: Sleeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is told of once, and reading goes on."""
    monkeypatch.setattr(bookmark, "MOST_LOST_S", 0.0)
    (tmp_path / "file").touch()
    told = list[str]()
    with Bookmark(sleeper, TEXT, sleeper.sleep_config, tmp_path / "file" / "readings", told.append) as mark:
        for i in (1, 2):
            mark.reached(8 * i, sleep_over(sleeper, TEXT[:, : 8 * i]).context)
    [sentence] = told
    assert sentence.startswith("what was read is not kept: ")


def test_the_newest_are_kept(sleeper: Sleeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bookmark, "_MOST_FILES", 3)
    texts = [TEXT + i for i in range(5)]
    texts = [text % 9 for text in texts]
    for text in texts:
        interrupted(sleeper, tmp_path / "readings", text=text)
    assert [found(sleeper, tmp_path / "readings", text) for text in texts] == [0, 0, 16, 16, 16]


def test_the_folder_of_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "own"))
    assert bookmark_folder() == tmp_path / "own" / "readings"
    monkeypatch.delenv(CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert bookmark_folder() == tmp_path / "reverie" / "readings"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert bookmark_folder() == Path("/home/me/.cache/reverie/readings")
