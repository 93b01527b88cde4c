"""What N passes do to one training step: fast weights and gradients, pass by pass.

Many passes are a deep network: these numbers show whether memory and gradients grow, vanish or settle along it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from reverie.card import PassStatistics
from reverie.model import State


class PassObserver:
    """To be given to `rollout` as `observe`; knows all once the backward pass has run.

    Under several processes it sees this one's share of the batch.
    """

    def __init__(self, labelled: Sequence[bool]) -> None:
        self._labelled = labelled
        # By pass, then by window and block, so that a window that is run again in the backward pass counts once.
        self._norms: dict[int, dict[tuple[int, int], float]] = defaultdict(dict)
        self._changes: dict[int, dict[tuple[int, int], float]] = defaultdict(dict)
        self._fast_weight_squares: dict[int, float] = defaultdict(float)
        self._hidden_squares: dict[int, float] = defaultdict(float)

    def __call__(self, window: int, n: int, h: Tensor, before: State, after: State) -> None:
        if self._labelled[window]:
            return
        for block, (old, new) in enumerate(zip(before.fast_weights, after.fast_weights, strict=True)):
            if new is None or new is old:
                continue
            with torch.no_grad():
                norms = torch.linalg.matrix_norm(new)
                change = norms if old is None else torch.linalg.matrix_norm(new - old)
                self._norms[n][window, block] = norms.mean().item()
                self._changes[n][window, block] = (change / norms.clamp_min(1e-12)).mean().item()
            if new.requires_grad:
                new.register_hook(partial(_add_square, self._fast_weight_squares, n))
        if h.requires_grad:
            h.register_hook(partial(_add_square, self._hidden_squares, n))

    def statistics(self) -> PassStatistics | None:
        """None if nothing was slept over."""
        passes = sorted(self._norms)
        if not passes:
            return None
        return PassStatistics(
            fast_weight_norm=[_mean(self._norms[n]) for n in passes],
            fast_weight_change=[_mean(self._changes[n]) for n in passes],
            fast_weight_gradient=[self._fast_weight_squares[n] ** 0.5 for n in passes],
            hidden_gradient=[self._hidden_squares[n] ** 0.5 for n in passes],
        )


def _add_square(squares: dict[int, float], n: int, gradient: Tensor) -> None:
    squares[n] += float(gradient.detach().square().sum())


def _mean(values: dict[tuple[int, int], float]) -> float:
    return sum(values.values()) / len(values)
