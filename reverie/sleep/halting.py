"""Adaptive sleep: every text of a batch wakes behind the first pass that hardly changes its fast weights.

Texts that are awake leave the batch, so the passes that they save are time saved. Each is computed as if it were alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from reverie.errors import UserError
from reverie.model import State, fast_weight_change, select_rows

Carried = TypeVar("Carried", bound=tuple[Any, ...])


class Sleepers:
    """The rows of a batch that sleep. Without `tolerance` all sleep to the last pass.

    Raises UserError for a tolerance where gradients are `truncated` some passes before the last, which is not known.
    """

    def __init__(self, tolerance: float | None, *, truncated: bool) -> None:
        if tolerance is not None and truncated:
            raise UserError("bptt_passes counts from the last pass, which a tolerance does not know: give one of them")
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
        changes = list(fast_weight_change(before, after).values())
        if not changes:  # blocks without fast weights: no pass will ever change any
            return self.settle(n, before, after, carried, last=True)
        still = ~(torch.stack(changes).amax(dim=0) < self.tolerance)  # by row, of the block that changed most
        if bool(still.all()):
            return carried
        rows = torch.arange(len(still), device=still.device) if self._asleep is None else self._asleep
        self._wake(n, rows[~still], select_rows(carried, (~still).nonzero()[:, 0]))
        self._asleep, self._any = rows[still], bool(still.any())
        return select_rows(carried, still.nonzero()[:, 0])

    def _wake(self, n: int, rows: Tensor | None, carried: tuple[Any, ...]) -> None:
        self.awake.append((n, *carried))
        self.rows.append(rows)


def in_order(parts: Sequence[Carried], rows: Sequence[Tensor | None]) -> Carried:
    """Parts of a batch as one again, each of which has these rows of it."""
    known = [row for row in rows if row is not None]
    if len(parts) == 1 or len(known) < len(parts):
        return parts[0]
    order = torch.cat(known).argsort()
    return tree_map(lambda *xs: torch.cat(xs)[order] if isinstance(xs[0], Tensor) else xs[0], *parts)
