"""Measurements of N passes in one training step: fast weights and gradients, pass by pass.

Many passes are a deep network: these numbers show whether memory and gradients grow, vanish or settle along it.
"""

from collections import defaultdict
from functools import partial
from math import fsum

import torch
from torch import Tensor

from reverie.model import State
from reverie.results.card import PassStatistics
from reverie.train.distributed import ALONE, Processes


class PassObserver:
    """An observer for `rollout_hidden`, which knows all once the backward pass has run.

    Several processes see a share of the batch each; what they know together is that of the whole.
    """

    def __init__(self, processes: Processes = ALONE) -> None:
        self._processes = processes
        self._part = 0  # of the batch
        # By pass, then by part, window and block, rows that slept, their norms and changes: a window that is run again
        # in the backward pass counts once.
        self._means: dict[int, dict[tuple[int, int, int], tuple[int, float, float]]] = defaultdict(dict)
        self._fast_weight_squares: dict[int, float] = defaultdict(float)
        self._hidden_squares: dict[int, float] = defaultdict(float)

    def __call__(self, window: int, n: int, h: Tensor, before: State, after: State) -> None:
        for block, (old, new) in enumerate(zip(before.fast_weights, after.fast_weights, strict=True)):
            if new is None or new is old:
                continue
            with torch.no_grad():
                norms = torch.linalg.matrix_norm(new)
                change = norms if old is None else torch.linalg.matrix_norm(new - old)
                means = norms.mean().item(), (change / norms.clamp_min(1e-12)).mean().item()
            self._means[n][self._part, window, block] = len(new), *means
            if new.requires_grad:
                new.register_hook(partial(_add_square, self._fast_weight_squares, n))
        if h.requires_grad:
            h.register_hook(partial(_add_square, self._hidden_squares, n))

    def next_part(self) -> None:
        """Begin with another part of the batch; the one before has gone backward."""
        self._part += 1

    def statistics(self) -> PassStatistics | None:
        """None if nothing was slept over. Of several processes, all call it."""
        mine = {
            n: (list(means.values()), self._fast_weight_squares[n], self._hidden_squares[n])
            for n, means in self._means.items()
        }
        found = self._processes.gather(mine)
        passes, world_size = sorted({n for part in found for n in part}), self._processes.world_size
        if not passes:
            return None
        parts = [[part[n] for part in found if n in part] for n in passes]
        means = [_mean_over_rows([row for rows, _, _ in part for row in rows]) for part in parts]
        return PassStatistics(
            fast_weight_norm=[norm for norm, _ in means],
            fast_weight_change=[change for _, change in means],
            # The loss of each is weighted for an average over processes.
            fast_weight_gradient=[sum(square for _, square, _ in part) ** 0.5 / world_size for part in parts],
            hidden_gradient=[sum(square for _, _, square in part) ** 0.5 / world_size for part in parts],
        )


def _mean_over_rows(found: list[tuple[int, float, float]]) -> tuple[float, float]:
    """The mean of norms and changes, each of which is the mean over so many rows."""
    most = max(rows for rows, _, _ in found)
    total = fsum(rows / most for rows, _, _ in found)
    norms, changes = (fsum(x[0] / most * x[i] for x in found) / total for i in (1, 2))
    return norms, changes


def _add_square(squares: dict[int, float], n: int, gradient: Tensor) -> None:
    squares[n] += float(gradient.detach().square().sum())
