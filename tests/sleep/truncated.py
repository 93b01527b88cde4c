"""A loss and its gradients; and those of windows and passes written out, cut off where truncation says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from algorithm_1 import L, T, text
from torch import Tensor

from reverie.model import HybridLM, State
from reverie.sleep import SleepConfig, rollout
from reverie.sleep.gradients import EXACT, Backward

FastWeights = list[Tensor | None]
Checkpoint = Literal["none", "pass", "window"]

LAYERS = ("gdn", "attn", "jet", "gdn")  # fast weights before the middle loop, inside it and after it
LOOPS = {"all": None, "first": (0, 2), "middle": (1, 3), "last": (2, 4)}
COTANGENT = torch.randn(2, T, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def loss_and_gradients(model: HybridLM, logits: Tensor, mask: Tensor) -> list[Tensor]:
    """A loss, and its gradient with respect to every parameter."""
    loss = (logits.double() * COTANGENT[:, : mask.shape[1]][mask]).sum()
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)]


def gradients(model: HybridLM, mask: Tensor, config: SleepConfig, backward: Backward = EXACT) -> list[Tensor]:
    return loss_and_gradients(model, rollout(model, text(mask.shape[1]), mask, config, backward=backward)[0], mask)


def equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """To the last bit."""
    return all(map(torch.equal, ours, theirs))


def one_pass(model: HybridLM, h: Tensor, S: FastWeights, start: int, stop: int) -> tuple[Tensor, FastWeights]:
    h, state = model.blocks(h, State(tuple(S), (None,) * len(S)), start, stop, span=L)
    return h, list(state.fast_weights)


def asleep_by_hand(model: HybridLM, window: Tensor, S: FastWeights, config: SleepConfig, cut: int) -> FastWeights:
    """N passes under hard eviction: `cut` of them without gradients, and after those S plus what they added to it."""
    a, b = config.looped_blocks or (0, model.num_blocks)
    h, now = model.embed(window), S
    for n in range(1, config.num_sleep_passes + 1):
        with torch.set_grad_enabled(torch.is_grad_enabled() and n > cut):
            h, now = one_pass(model, h, now, 0 if n == 1 else a, b)
        if n == cut:
            now = [y if x is None or y is None else x + (y - x).detach() for x, y in zip(S, now, strict=True)]
    return one_pass(model, h, [*now[:b], *S[b:]], b, model.num_blocks)[1]


def gradients_by_hand(
    model: HybridLM, mask: Tensor, config: SleepConfig, k: int, first: Callable[[int], int]
) -> list[Tensor]:
    """The sum over windows w with labels, whose gradients go back into windows first(w) … w, k passes of each."""
    labelled = [bool(part.any()) for part in mask.split(L, 1)]
    total = [torch.zeros((), dtype=torch.float64), *map(torch.zeros_like, model.parameters())]
    for w in [i for i, has_label in enumerate(labelled) if has_label]:
        S: FastWeights = [None] * model.num_blocks
        h = torch.empty(0)
        for i, window in enumerate(text().split(L, 1)[: w + 1]):
            with torch.set_grad_enabled(i >= first(w)):
                if labelled[i]:
                    h, S = one_pass(model, model.embed(window), S, 0, model.num_blocks)
                else:
                    S = asleep_by_hand(model, window, S, config, max(config.num_sleep_passes - k, 0))
        here = torch.zeros_like(mask)
        here[:, w * L : (w + 1) * L] = mask[:, w * L : (w + 1) * L]
        parts = loss_and_gradients(model, model.head(h)[mask[:, w * L : (w + 1) * L]], here)
        total = [x + y for x, y in zip(total, parts, strict=True)]
    return total


def assert_cut_as_by_hand(
    model: HybridLM, mask: Tensor, config: SleepConfig, backward: Backward, first: Callable[[int], int]
) -> None:
    ours = gradients(model, mask, config, backward)
    by_hand = gradients_by_hand(model, mask, config, backward.bptt_passes or config.num_sleep_passes, first)
    torch.testing.assert_close(ours, by_hand, rtol=1e-10, atol=1e-10)
