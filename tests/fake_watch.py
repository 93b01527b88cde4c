"""What `reverie watch` would have seen: made-up numbers."""

from __future__ import annotations

import math

from reverie.memory.history import Window
from reverie.results.watch.collect import Answers, Line, Watch
from reverie.sleep import SleepConfig


def watched(windows: int, passes: int, blocks: list[int], *, adaptive: bool = False, asked: bool = False) -> Watch:
    """Changes fall from pass to pass; adaptively, every second window sleeps a pass less."""
    made = []
    for i in range(windows):
        spent = passes - (i % 2 if adaptive else 0)
        change = {n: {block: math.exp(-n - block / 10) for block in blocks} for n in range(1, spent + 1)}
        made.append(Window(1000 + 8 * i, 8, spent, 0.01 * spent, change))
    line = Line(name="2", questions=10, chance=0.25, accuracy=[i / windows for i in range(windows + 1)])
    answers = [Answers(by="hops k", lines=[line, line.model_copy(update={"name": "4", "chance": 0.5})])]
    return Watch(
        name="book.txt",
        kind="run" if asked else "memory",
        config=SleepConfig(window_size=8, num_sleep_passes=passes, tolerance=0.1 if adaptive else None),
        windows=made,
        num_windows=windows + 125,
        seconds=1.0,
        texts=64 if asked else 0,
        accuracy=line.accuracy if asked else [],
        answers=answers if asked else [],
    )
