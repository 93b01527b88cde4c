"""Times, by a clock that moves only when something is called."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from reverie.bench import timer
from reverie.bench.timer import Timing, alternate


class Clock:
    def __init__(self) -> None:
        self.now, self.called = 0.0, ""

    def read(self) -> float:
        return self.now

    def takes(self, name: str, *seconds: float) -> Callable[[], None]:
        """A call that takes these times one after the other, the last one ever after."""
        left = list(seconds)

        def call() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]
            self.called += name

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timer, "clock", clock.read)
    return clock


def test_calls_take_turns_forth_and_back(clock: Clock) -> None:
    calls = {name: clock.takes(name, 1.0) for name in "ABC"}
    alternate(calls, seconds=0.0, slice_s=1.0, least=3)
    assert clock.called == "ABC" + "ABC" + "ABC" + "CBA" + "ABC"  # warm-up, how long they take, three rounds


def test_the_first_call_does_not_count(clock: Clock) -> None:
    times = alternate({"A": clock.takes("A", 60.0, 0.5)}, seconds=1.0, slice_s=0.1)
    assert times["A"].rounds == [0.5] * 5


def test_short_calls_fill_a_slice_and_are_timed_one_by_one(clock: Clock) -> None:
    times = alternate({"A": clock.takes("A", 0.01), "B": clock.takes("B", 0.3)}, seconds=0.0, slice_s=0.1, least=2)
    assert clock.called == "AB" + "AB" + "A" * 10 + "BB" + "A" * 10
    assert times["A"].rounds == pytest.approx([0.01] * 2)
    assert times["B"].rounds == pytest.approx([0.3] * 2)


def test_it_goes_on_until_the_time_is_up(clock: Clock) -> None:
    calls = {"A": clock.takes("A", 1.0), "B": clock.takes("B", 2.0)}
    assert len(alternate(calls, seconds=30.0)["A"].rounds) == 10


def test_median_and_best() -> None:
    times = Timing(rounds=[5.0, 1.0, 2.0, 9.0, 3.0])
    assert (times.median, times.best) == (3.0, 1.0)
