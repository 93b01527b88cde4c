"""Times of several callables, measured in turn in one process, on a CPU or a GPU."""

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from pydantic import BaseModel, ConfigDict
from torch.utils.benchmark import timer as clock  # on a GPU it waits until all that was launched is done


class Timing(BaseModel):
    """Seconds a call, one entry a round."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def over(self, base: "Timing") -> float:
        """The ratio to another's times: the median over rounds of the two in the same round."""
        return statistics.median(a / b for a, b in zip(self.rounds, base.rounds, strict=True))

    @property
    def best(self) -> float:
        return min(self.rounds)


def alternate(
    calls: Mapping[str, Callable[[], object]], *, seconds: float = 10.0, slice_s: float = 0.1, least: int = 5
) -> dict[str, Timing]:
    """Time all calls in rounds of short slices, A B C, C B A, …: another job or a drifting clock hits all alike.

    Only the ends of a slice wait for a GPU, so that what it is given in a slice runs as in training, one call after the
    other.

    Args:
        seconds: when to stop, all together; but not before `least` rounds.
        slice_s: a shorter call is repeated to fill a slice that long.
    """
    for call in calls.values():
        call()  # warm-up
    repeats = {name: max(1, round(slice_s / max(_seconds(call, 1), 1e-9))) for name, call in calls.items()}
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    order, begun = list(calls), clock()
    while len(rounds[order[0]]) < least or clock() - begun < seconds:
        for name in order:
            rounds[name].append(_seconds(calls[name], repeats[name]))
        order.reverse()
    return {name: Timing(rounds=values) for name, values in rounds.items()}


@contextmanager
def with_threads(count: int) -> Iterator[None]:
    """Torch computes with so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(call: Callable[[], object], repeats: int) -> float:
    begun = clock()
    for _ in range(repeats):
        call()
    return (clock() - begun) / repeats
