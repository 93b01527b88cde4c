"""`History`: how much sleep changed the fast weights, window by window, recorded while a text is read."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from reverie.model import State, fast_weight_change

MOST_WINDOWS = 1024  # a history is bounded, whatever the length of the text


@dataclass(frozen=True)
class Window:
    """A window that was slept over."""

    start: int  # index of its first token in the text
    tokens: int
    passes: float  # spent on it, mean over rows
    seconds: float
    change: Mapping[int, Mapping[int, float]]  # relative change of fast weights, by pass (1, 2, …) and block


class History:
    """Record of the newest `MOST_WINDOWS` windows of a text, with totals over all of them.

    `observe` is the hook for `wake` and `sleep`; `close` ends a window.
    """

    def __init__(self) -> None:
        self.num_windows = 0
        self.num_tokens = 0
        self.passes = 0.0  # of all windows
        self.seconds = 0.0
        self._windows: deque[Window] = deque(maxlen=MOST_WINDOWS)
        self._open: dict[int, dict[int, Tensor]] = defaultdict(dict)

    @property
    def windows(self) -> tuple[Window, ...]:
        """The newest windows, oldest first."""
        return tuple(self._windows)

    @property
    def fast_weight_blocks(self) -> list[int]:
        """Blocks of which changes were recorded."""
        return sorted({block for window in self._windows for by_block in window.change.values() for block in by_block})

    def observe(self, n: int, h: Tensor, before: State, after: State) -> None:
        """Record the relative change of fast weights by blocks that ran in pass n, mean over rows; h is not used.

        Blocks after the loop may run twice in one pass; the last change counts.
        """
        with torch.no_grad():
            self._open[n] |= {block: rows.mean() for block, rows in fast_weight_change(before, after).items()}

    def close(self, tokens: int, passes: float, seconds: float) -> None:
        """End the window that was observed, which had so many tokens, passes and seconds."""
        change = _finite({n: {block: float(x.float()) for block, x in row.items()} for n, row in self._open.items()})
        self._open.clear()
        self._windows.append(Window(self.num_tokens, tokens, passes, seconds, change))
        self.num_windows += 1
        self.num_tokens += tokens
        self.passes += passes
        self.seconds += seconds

    def copy(self) -> History:
        """An independent copy."""
        return History.from_tensors(self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """The history as tensors, for a file; W windows are kept, of at most N passes and F blocks.

        counts   int64 [2]            total windows and tokens
        totals   float64 [2]          total passes and seconds
        tokens   int64 [W]
        spent    float64 [W, 2]       passes and seconds
        blocks   int64 [F]
        change   float32 [W, N, F]    NaN where a block did not run
        """
        blocks, windows = self.fast_weight_blocks, self.windows
        passes = range(1, 1 + max((n for window in windows for n in window.change), default=0))
        change = [[[w.change.get(n, {}).get(block, torch.nan) for block in blocks] for n in passes] for w in windows]
        return {
            "counts": torch.tensor([self.num_windows, self.num_tokens]),
            "totals": torch.tensor([self.passes, self.seconds], dtype=torch.float64),
            "tokens": torch.tensor([window.tokens for window in windows], dtype=torch.int64),
            "spent": torch.tensor([[w.passes, w.seconds] for w in windows], dtype=torch.float64).reshape(-1, 2),
            "blocks": torch.tensor(blocks, dtype=torch.int64),
            "change": torch.tensor(change, dtype=torch.float32).reshape(len(windows), len(passes), len(blocks)),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> History:
        """The history that `tensors` was called on. Raises ValueError if there can be none."""
        _check(tensors)
        history, blocks, lengths = cls(), tensors["blocks"].tolist(), tensors["tokens"].tolist()
        history.num_windows, history.num_tokens = tensors["counts"].tolist()
        history.passes, history.seconds = tensors["totals"].tolist()
        start = history.num_tokens - sum(lengths)
        rows = zip(lengths, tensors["spent"].tolist(), tensors["change"].tolist(), strict=True)
        for tokens, (passes, seconds), by_pass in rows:
            change = _finite({n: dict(zip(blocks, row, strict=True)) for n, row in enumerate(by_pass, 1)})
            history._windows.append(Window(start, tokens, passes, seconds, change))
            start += tokens
        return history


def _finite(change: Mapping[int, Mapping[int, float]]) -> dict[int, dict[int, float]]:
    """Changes without those that are not finite: blocks that did not run, or overflowed."""
    kept = {n: {block: x for block, x in sorted(row.items()) if isfinite(x)} for n, row in sorted(change.items())}
    return {n: row for n, row in kept.items() if row}


_TYPES = {
    "counts": torch.int64,
    "totals": torch.float64,
    "tokens": torch.int64,
    "spent": torch.float64,
    "blocks": torch.int64,
    "change": torch.float32,
}


# Larger values would make drawing a figure endless.
_LARGEST, _MOST_PASSES, _MOST_BLOCKS = 1e15, 10_000, 512


def _check(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError for tensors that `History.tensors` cannot have returned."""
    if {name: tensor.dtype for name, tensor in tensors.items()} != _TYPES:
        raise ValueError(f"a history is {', '.join(_TYPES)}, each of its own type")
    counts, totals, tokens, spent, blocks, change = (tensors[name] for name in _TYPES)
    W, N, F = change.shape if change.ndim == 3 else (0, 0, 0)
    shapes = [tuple(tensor.shape) for tensor in (counts, totals, tokens, spent, blocks, change)]
    if shapes != [(2,), (2,), (W,), (W, 2), (F,), (W, N, F)] or N > _MOST_PASSES or F > _MOST_BLOCKS:
        raise ValueError("the shapes of a history do not belong together, or are too large")
    # Python's integers: a hostile sum must not wrap around.
    (num_windows, num_tokens), lengths = counts.tolist(), tokens.tolist()
    whole = sum(lengths) == num_tokens if num_windows == W else sum(lengths) < num_tokens
    if min(num_windows, MOST_WINDOWS) != W or num_windows > num_tokens or min(lengths, default=1) < 1 or not whole:
        raise ValueError("the windows of a history are not those that it counted")
    if blocks.tolist() != sorted(set(blocks.tolist())) or (F and blocks[0] < 0) or (N == 0) != (F == 0):
        raise ValueError("the blocks of a history are indices in ascending order")
    in_range = [((x >= 0) & (x <= _LARGEST)).all() for x in (totals, spent)]
    if not all(in_range) or bool((change < 0).any() or change.isinf().any()):
        raise ValueError(f"passes and seconds of a history are numbers from 0 to {_LARGEST:.0e}, its changes from 0 on")
