"""What tests ask of an engine."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch

from reverie.memory.memory import Memory
from reverie.serve.engine import Engine
from reverie.serve.job import Ended, Event, Failed, Job, Wrote
from reverie.serve.limits import Limits
from reverie.serve.sessions import Live
from reverie.serve.writer import Sampling
from reverie.talk.heard import Heard
from reverie.talk.sleeper import Sleeper


@contextlib.contextmanager
def engine_of(sleeper: Sleeper, **limits: Any) -> Iterator[Engine]:
    engine = Engine(sleeper, Limits(**limits))
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


class Asked:
    """A job that runs, and what it was told."""

    def __init__(
        self, engine: Engine, live: Live, tokens: Sequence[int], n: int = 1, turns: int = 1, **sampling: Any
    ) -> None:
        self.events = queue.SimpleQueue[Event]()
        self.job = Job(live, tokens, turns, Sampling(**sampling), n, self.events.put)
        engine.submit(self.job)

    def all(self) -> list[Event]:
        events = list[Event]()
        left = self.job.n if self.job.sampling.max_tokens != 0 else 1
        while left:
            events.append(self.events.get(timeout=60))
            if isinstance(events[-1], Failed):
                raise events[-1].error
            left -= isinstance(events[-1], Ended)
        return events

    def ends(self) -> list[Ended]:
        return sorted((e for e in self.all() if isinstance(e, Ended)), key=lambda end: end.index)

    def end(self) -> Ended:
        [end] = self.ends()
        return end

    def logprobs(self) -> list[float]:
        return [shown.logprob for e in self.all() if isinstance(e, Wrote) for shown in e.piece.tokens]


def new(sleeper: Sleeper) -> Live:
    return Live(Heard(Memory.empty(sleeper)), "")


def weights(heard: Heard) -> list[torch.Tensor]:
    return [x for x in heard.memory.context.state.fast_weights if x is not None]


def same(a: Heard, b: Heard) -> bool:
    """Bit for bit."""
    return (a.awake, a.turns) == (b.awake, b.turns) and all(map(torch.equal, weights(a), weights(b)))


TEXT = " ".join(["3", "4", "5", "6", "7", "8", "4", "6"] * 6)


def read(http: httpx.Client, name: str, text: str = TEXT) -> None:
    http.post("/v1/memories", json={"name": name, "text": text}).raise_for_status()
    while http.get(f"/v1/memories/{name}").json()["status"] == "reading":
        time.sleep(0.05)


def files(store: Path) -> list[Path]:
    """That hold anything of what was said."""
    return [path for path in store.rglob("*") if path.is_file() and path.suffix != ".lock" and path.name != ".lock"]
