"""Progress: bars on a terminal, else lines with loss, accuracy, tokens/s and time left, and not too many."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from reverie.cli import progress
from reverie.cli.progress import LINE_INTERVAL_S, ReadDisplay, RowDisplay, RunDisplay
from reverie.train.worker import Event


def event(step: int, **changes: float | None) -> Event:
    """100 steps; 50 tokens and 0.1 s a step."""
    fields = {"steps": 100, "tokens": 50 * step, "wall_time_s": 0.1 * step, "loss": 1.25, "accuracy": None}
    return Event(**{"step": step, **fields, **changes})  # type: ignore[arg-type]


class Screen:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, terminal: bool = False, width: int = 80) -> None:
        self.now = 1000.0
        self._file = io.StringIO()
        self.console = Console(file=self._file, force_terminal=terminal, width=width, color_system=None)
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.display = RunDisplay(self.console)

    @property
    def text(self) -> str:
        return self._file.getvalue()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


def test_a_line_tells_loss_accuracy_speed_and_time_left(monkeypatch: pytest.MonkeyPatch):
    screen = Screen(monkeypatch)
    with screen.display as display:
        display.update("depo/nano", event(10))
        screen.now += LINE_INTERVAL_S
        display.update("depo/nano", event(20, accuracy=0.5, loss=0.125))
    assert screen.lines == [
        "depo/nano  step 10/100  loss 1.250  500 tok/s  ETA 0:09",
        "depo/nano  step 20/100  loss 0.125  acc 0.500  500 tok/s  ETA 0:08",
    ]


def test_speed_and_time_left_of_a_resumed_run_are_those_since_it_was_resumed(monkeypatch: pytest.MonkeyPatch):
    screen = Screen(monkeypatch)
    with screen.display as display:
        display.update("run", event(40, wall_time_s=1000.0))
        screen.now += LINE_INTERVAL_S
        display.update("run", event(50, wall_time_s=1020.0))
    assert screen.lines[-1].endswith("25 tok/s  ETA 1:40")


def test_lines_are_not_closer_than_the_interval_but_for_the_last_step(monkeypatch: pytest.MonkeyPatch):
    screen = Screen(monkeypatch)
    with screen.display as display:
        for step in range(1, 101):
            display.update("run", event(step))
            screen.now += LINE_INTERVAL_S / 8
    assert [int(line.split()[2].split("/")[0]) for line in screen.lines] == [*range(1, 100, 8), 100]


def test_every_run_has_lines_of_its_own(monkeypatch: pytest.MonkeyPatch):
    screen = Screen(monkeypatch)
    with screen.display as display:
        for name in ("a", "b", "a", "b"):
            display.update(name, event(3))
    assert [line[0] for line in screen.lines] == ["a", "b"]


def test_a_long_line_stays_one_line_and_a_name_is_no_markup(monkeypatch: pytest.MonkeyPatch):
    screen = Screen(monkeypatch, width=40)
    with screen.display as display:
        display.update("my[red]recipe" + "x" * 60, event(1))
    [line] = screen.lines
    assert line.startswith("my[red]recipexxx")
    assert line.endswith("ETA 0:09")


def test_no_time_at_all_is_no_division_by_zero(monkeypatch: pytest.MonkeyPatch):
    screen = Screen(monkeypatch)
    with screen.display as display:
        display.update("run", event(0, wall_time_s=0.0))
        display.update("other", event(100, wall_time_s=0.0))
    assert len(screen.lines) == 2


def test_a_terminal_shows_bars_instead_of_lines(monkeypatch: pytest.MonkeyPatch):
    screen = Screen(monkeypatch, terminal=True)
    with screen.display as display:
        for step in (1, 50, 100):
            for name in ("transformer-seed-0", "[sleep]-2-seed-0"):
                display.update(name, event(step, accuracy=0.5))
    assert "ETA" not in screen.text
    last = screen.text[screen.text.rindex("transformer-seed-0") :]
    assert "[sleep]-2-seed-0" in last
    assert last.count("100/100") == 2
    assert last.count("loss 1.250  acc 0.500  500 tok/s") == 2  # 80 columns are enough for all of it
    assert "…" not in last


def test_rows_are_counted_from_those_found(monkeypatch: pytest.MonkeyPatch):
    screen = Screen(monkeypatch)
    with RowDisplay(screen.console, "rows.jsonl", 1000) as display:
        for rows, seconds in ((100, 0), (120, 20), (200, LINE_INTERVAL_S), (201, 1), (1000, 90)):
            screen.now += seconds
            display.update(rows)
    assert screen.lines == [
        "rows.jsonl  row 120/1000  1.0 rows/s  ETA 14:40",
        "rows.jsonl  row 200/1000  3.3 rows/s  ETA 4:00",
        "rows.jsonl  row 1000/1000  7.4 rows/s  ETA 0:00",
    ]


def test_rows_have_a_bar_on_a_terminal_from_the_start(monkeypatch: pytest.MonkeyPatch):
    screen = Screen(monkeypatch, terminal=True)
    with RowDisplay(screen.console, "[rows].jsonl", 10) as display:
        display.update(0)
        assert "[rows].jsonl" in screen.text
        screen.now += 2
        display.update(10)
    assert "10/10 5.0 rows/s" in screen.text


def test_windows_of_a_text(monkeypatch: pytest.MonkeyPatch):
    screen = Screen(monkeypatch)
    with ReadDisplay(screen.console, "reading") as display:
        for windows in range(4):
            display.update(windows, 3, 512 * windows)
            screen.now += LINE_INTERVAL_S
    assert screen.lines == [
        "reading  window 1/3  51 tok/s  ETA 0:20",
        "reading  window 2/3  51 tok/s  ETA 0:10",
        "reading  window 3/3  51 tok/s  ETA 0:00",
    ]


def test_a_text_that_is_gone_on_with(monkeypatch: pytest.MonkeyPatch):
    """Speed and time are those of the windows read now; what is held stands beside them."""
    screen = Screen(monkeypatch)
    with ReadDisplay(screen.console, "reading") as display:
        for windows in range(7, 11):
            display.update(windows, 10, 512 * windows, 8192 if windows > 7 else 0)
            screen.now += LINE_INTERVAL_S
    assert screen.lines == [
        "reading  window 8/10  51 tok/s  8.2 kB  ETA 0:20",
        "reading  window 9/10  51 tok/s  8.2 kB  ETA 0:10",
        "reading  window 10/10  51 tok/s  8.2 kB  ETA 0:00",
    ]


@pytest.mark.parametrize("windows", [0, 2])
def test_the_bar_of_windows_ends_with_the_last_one(monkeypatch: pytest.MonkeyPatch, windows: int):
    """What is written next to the terminal stays below it."""
    screen = Screen(monkeypatch, terminal=True)
    with ReadDisplay(screen.console, "reading") as display:
        for i in range(windows + 1):
            display.update(i, windows, 512 * i)
        shown = screen.text
        assert ("2/2" in shown) == (windows == 2)
        screen.console.print("text")
        assert screen.text == shown + "text\n"
