"""Adaptive sleep: every text of a batch wakes behind the first pass that hardly changes its fast weights.

Texts that are awake leave the batch, so the passes that they save are time saved. Each is computed as if it were alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from reverie.model import State, fast_weight_change, select_rows

Carried = TypeVar("Carried", bound=tuple[Any, ...])


class Sleepers:
    """The rows of a batch that sleep. Without `tolerance` all sleep to the last pass."""

    def __init__(self, tolerance: float | None) -> None:
        self.tolerance = tolerance
        self.awake: list[tuple[Any, ...]] = []  # of some rows: their last pass, and what they carried
        self.rows: list[Tensor | None] = []  # which rows; None: all of them
        self._asleep: Tensor | None = None  # None: all
        self._any = True

    def __bool__(self) -> bool:
        return self._any

    def settle(self, n: int, before: State, after: State, carried: Carried, *, last: bool) -> Carried:
        """Behind pass n, which led from `before` to `after`: who wakes goes to `awake`. Returns the others' part."""
        if last:
            self._wake(n, self._asleep, carried)
            self._any = False
            return carried
        if self.tolerance is None:
            return carried
        still = ~(largest_change(before, after) < self.tolerance)
        if bool(still.all()):
            return carried
        rows = torch.arange(len(still), device=still.device) if self._asleep is None else self._asleep
        self._wake(n, rows[~still], select_rows(carried, (~still).nonzero()[:, 0]))
        self._asleep, self._any = rows[still], bool(still.any())
        return select_rows(carried, still.nonzero()[:, 0])

    def _wake(self, n: int, rows: Tensor | None, carried: tuple[Any, ...]) -> None:
        self.awake.append((n, *carried))
        self.rows.append(rows)


def largest_change(before: State, after: State) -> Float[Tensor, " B"]:
    """By row: the relative change of the block's fast weights that changed most."""
    return torch.stack(list(fast_weight_change(before, after).values())).amax(dim=0)


def in_order(parts: Sequence[Carried], rows: Sequence[Tensor | None]) -> Carried:
    """Parts of a batch as one again, each of which has these rows of it."""
    known = [row for row in rows if row is not None]
    if len(parts) == 1 or len(known) < len(parts):
        return parts[0]
    order = torch.cat(known).argsort()
    return tree_map(lambda *xs: torch.cat(xs)[order] if isinstance(xs[0], Tensor) else xs[0], *parts)
