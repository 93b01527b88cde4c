"""Training for a number of seconds: it stops while there is still time to save."""

import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Iterator

NEWEST = 50  # durations that are remembered: what was compiled long ago says nothing about the next step


class TimeLimit:
    """Tells if what comes next will be done within a number of seconds, counted from when this object is made."""

    def __init__(self, seconds: float | None = None) -> None:
        """`None`: there is no limit."""
        self._end = None if seconds is None else time.monotonic() + seconds
        self._durations: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=NEWEST))

    @contextlib.contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Measure a part of training, by name."""
        begun = time.monotonic()
        yield
        self._durations[part].append(time.monotonic() - begun)

    def allows(self, *parts: str) -> bool:
        """True if these parts, one after the other, will be done in time.

        Each is expected to take as long as the longest of its newest ones; no time at all if there was none yet.
        """
        if self._end is None:
            return True
        return time.monotonic() + sum(max(self._durations[part], default=0.0) for part in parts) < self._end
