"""Adaptive halting: every row of a batch stops after the first pass that hardly changes its fast weights.

Rows that have stopped leave the batch, so the passes that they save are time saved. Each is computed as if it were
alone.
"""

import torch
from torch import Tensor

from reverie.model import State, fast_weight_change, select_rows
from reverie.sleep.context import Beside, put_rows
from reverie.sleep.gradients import Pass


class Halting:
    """A pass that only rows which have not stopped take part in; for the others it returns what their last one did.

    Without `tolerance` no row stops before the last pass.

    Attributes:
        passes: that a row took part in, pass 1 included; by row [B] where there is a tolerance.
        newest: the last pass that any row took part in.
    """

    def __init__(self, one_pass: Pass, num_passes: int, tolerance: float | None) -> None:
        self.passes: int | Tensor = num_passes
        self.newest = num_passes
        self._pass, self._num_passes, self._tolerance = one_pass, num_passes, tolerance
        self._rows: Tensor | None = None  # that have not stopped; None: all

    def __call__(self, n: int, h: Tensor, state: State, before: State, beside: Beside) -> tuple[Tensor, State]:
        if self._tolerance is None:
            return self._pass(n, h, state, before, beside)
        if not isinstance(self.passes, Tensor):
            self.passes = torch.full((len(h),), self._num_passes, device=h.device)
        rows = self._rows
        if rows is not None and not len(rows):
            return h, state
        given = (h, state, before, beside)
        given = given if rows is None else select_rows(given, rows)
        made = self._pass(n, *given)
        self.newest = n
        if n < self._num_passes:
            self._stop(n, given[1], made[1], self._tolerance)
        return made if rows is None else put_rows((h, state), made, rows)

    def _stop(self, n: int, before: State, after: State, tolerance: float) -> None:
        """After pass n, which led from `before` to `after`: the rows that it hardly changed stop."""
        assert isinstance(self.passes, Tensor)
        rows = torch.arange(len(self.passes), device=self.passes.device) if self._rows is None else self._rows
        changes = list(fast_weight_change(before, after).values())
        # By row, of the block that changed most. Where no block that runs has fast weights, no pass will change any.
        still = torch.stack(changes).amax(dim=0) < tolerance if changes else torch.ones_like(rows, dtype=torch.bool)
        if bool(still.any()):
            self.passes[rows[still]] = n
            self._rows = rows[~still]
