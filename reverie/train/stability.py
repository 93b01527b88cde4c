"""What N passes do to one training step: fast weights and gradients, pass by pass.

Many passes are a deep network: these numbers show whether memory and gradients grow, vanish or settle along it.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from math import fsum

import torch
from torch import Tensor

from reverie.model import State
from reverie.results.card import PassStatistics
from reverie.train.distributed import ALONE, Processes


class PassObserver:
    """To be given to `rollout_hidden` as `observe`; knows all once the backward pass has run.

    Several processes see a share of the batch each; what they know together is that of the whole.
    """

    def __init__(self, processes: Processes = ALONE) -> None:
        self._processes = processes
        self._part = 0  # of the batch
        self._rows: dict[tuple[int, int, int], int] = {}  # that slept, by part, window and block
        # By pass, then by the same: a window that is run again in the backward pass counts once.
        self._norms: dict[int, dict[tuple[int, int, int], float]] = defaultdict(dict)
        self._changes: dict[int, dict[tuple[int, int, int], float]] = defaultdict(dict)
        self._fast_weight_squares: dict[int, float] = defaultdict(float)
        self._hidden_squares: dict[int, float] = defaultdict(float)

    def __call__(self, window: int, n: int, h: Tensor, before: State, after: State) -> None:
        for block, (old, new) in enumerate(zip(before.fast_weights, after.fast_weights, strict=True)):
            if new is None or new is old:
                continue
            self._rows[self._part, window, block] = len(new)
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
        mine = {
            n: (
                self._over_rows(dict.fromkeys(self._norms[n], 1.0)),
                self._over_rows(self._norms[n]),
                self._over_rows(self._changes[n]),
                self._fast_weight_squares[n],
                self._hidden_squares[n],
            )
            for n in self._norms
        }
        found = self._processes.gather(mine)
        passes, world_size = sorted({n for part in found for n in part}), self._processes.world_size
        if not passes:
            return None
        sums = [
            [fsum(column) for column in zip(*(part[n] for part in found if n in part), strict=True)] for n in passes
        ]
        return PassStatistics(
            fast_weight_norm=[norms / rows for rows, norms, _, _, _ in sums],
            fast_weight_change=[changes / rows for rows, _, changes, _, _ in sums],
            # The loss of each is weighted for an average over processes.
            fast_weight_gradient=[squares**0.5 / world_size for _, _, _, squares, _ in sums],
            hidden_gradient=[squares**0.5 / world_size for _, _, _, _, squares in sums],
        )

    def _over_rows(self, values: dict[tuple[int, int, int], float]) -> float:
        """The sum over parts, and over the rows asleep in them, of the mean over windows and blocks."""
        total = 0.0
        for part in sorted({part for part, _, _ in values}):
            own = {key: value for key, value in values.items() if key[0] == part}
            most = max(self._rows[key] for key in own)
            total += most * (fsum(self._rows[key] / most * value for key, value in own.items()) / len(own))
        return total


def _add_square(squares: dict[int, float], n: int, gradient: Tensor) -> None:
    squares[n] += float(gradient.detach().square().sum())
