"""What N passes do to one training step: fast weights and gradients, pass by pass.

Many passes are a deep network: these numbers show whether memory and gradients grow, vanish or settle along it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from reverie.model import State
from reverie.results.card import PassStatistics
from reverie.train.distributed import ALONE, Processes


class PassObserver:
    """To be given to `rollout` as `observe`; knows all once the backward pass has run.

    Several processes see a share of the batch each; what they know together is that of the whole.
    """

    def __init__(self, labelled: Sequence[bool], processes: Processes = ALONE) -> None:
        self._labelled, self._processes = labelled, processes
        self._part = 0  # of the batch
        self._rows: dict[int, int] = {}  # by part
        # By pass, then by part, window and block: a window that is run again in the backward pass counts once.
        self._norms: dict[int, dict[tuple[int, int, int], float]] = defaultdict(dict)
        self._changes: dict[int, dict[tuple[int, int, int], float]] = defaultdict(dict)
        self._fast_weight_squares: dict[int, float] = defaultdict(float)
        self._hidden_squares: dict[int, float] = defaultdict(float)

    def __call__(self, window: int, n: int, h: Tensor, before: State, after: State) -> None:
        if self._labelled[window]:
            return
        for block, (old, new) in enumerate(zip(before.fast_weights, after.fast_weights, strict=True)):
            if new is None or new is old:
                continue
            self._rows[self._part] = len(new)
            with torch.no_grad():
                norms = torch.linalg.matrix_norm(new)
                change = norms if old is None else torch.linalg.matrix_norm(new - old)
                self._norms[n][self._part, window, block] = norms.mean().item()
                self._changes[n][self._part, window, block] = (change / norms.clamp_min(1e-12)).mean().item()
            if new.requires_grad:
                new.register_hook(partial(_add_square, self._fast_weight_squares, n))
        if h.requires_grad:
            h.register_hook(partial(_add_square, self._hidden_squares, n))

    def next_part(self) -> None:
        """What comes is another part of the batch; the one before has gone backward."""
        self._part += 1

    def statistics(self) -> PassStatistics | None:
        """None if nothing was slept over. Of several processes, all call it."""
        passes, world_size = sorted(self._norms), self._processes.world_size
        if not passes:
            return None
        [rows] = self._processes.sum([sum(self._rows.values())])
        norms = self._processes.sum([self._over_rows(self._norms[n]) for n in passes])
        changes = self._processes.sum([self._over_rows(self._changes[n]) for n in passes])
        fast_weight_squares = self._processes.sum([self._fast_weight_squares[n] for n in passes])
        hidden_squares = self._processes.sum([self._hidden_squares[n] for n in passes])
        return PassStatistics(
            fast_weight_norm=[norm / rows for norm in norms],
            fast_weight_change=[change / rows for change in changes],
            # The loss of each is weighted for an average over processes.
            fast_weight_gradient=[square**0.5 / world_size for square in fast_weight_squares],
            hidden_gradient=[square**0.5 / world_size for square in hidden_squares],
        )

    def _over_rows(self, values: dict[tuple[int, int, int], float]) -> float:
        """The sum over rows of the mean over windows and blocks."""
        return sum(
            rows * statistics.fmean(value for (of, _, _), value in values.items() if of == part)
            for part, rows in self._rows.items()
        )


def _add_square(squares: dict[int, float], n: int, gradient: Tensor) -> None:
    squares[n] += float(gradient.detach().square().sum())
