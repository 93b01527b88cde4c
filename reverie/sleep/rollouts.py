"""`rollout`: batches of texts with labels, as training and evaluation run them.

A row sleeps over the windows in which it has no label, and is predicted in the others; each is computed as if it were
alone. Shapes: B batch, T tokens, W windows, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reverie.errors import UserError
from reverie.model import SleepingModel, State
from reverie.sleep.algorithm import step
from reverie.sleep.config import SleepConfig
from reverie.sleep.context import Context, by_kind
from reverie.sleep.gradients import EXACT, Backward
from reverie.sleep.labels import in_labelled, labelled_windows

OUT_OF_REACH, ASLEEP, PREDICTED = range(3)  # what a row does in a window; the first is asleep, and without gradients


def rollout(
    model: SleepingModel,
    tokens: Int[Tensor, "B T"],
    loss_mask: Bool[Tensor, "B T"],
    config: SleepConfig,
    *,
    context: Context | None = None,
    labelled: Bool[Tensor, "B W"] | None = None,
    backward: Backward = EXACT,
) -> tuple[Float[Tensor, "scored vocab"], Context]:
    """The logits of the labelled positions, in the order of `tokens[loss_mask]`, and the context at the end."""
    labelled = labelled_windows(loss_mask, config.window_size) if labelled is None else labelled
    h, context = rollout_hidden(model, tokens, config, labelled, context=context, backward=backward)
    return model.head(h[in_labelled(loss_mask, config.window_size, labelled)]), context


def rollout_hidden(
    model: SleepingModel,
    tokens: Int[Tensor, "B T"],
    config: SleepConfig,
    labelled: Bool[Tensor, "B W"],
    *,
    context: Context | None = None,
    to_end: bool = True,
    backward: Backward = EXACT,
    observe: Callable[[int, int, Tensor, State, State], None] | None = None,
) -> tuple[Float[Tensor, "B T_labelled D"], Context]:
    """Algorithm 1 up to the head: a row sleeps over its windows without labels, and is predicted in the others.

    Args:
        labelled: which windows of which row hold a label; on the CPU.
        context: to go on from, between two windows; if absent, nothing is known.
        to_end: whether gradients of the context at the end are wanted.
        observe: called after every pass asleep, also one made again, with the window's index and what `Observe` says.

    Returns h of all tokens in windows with a label of any row, where that row is predicted in them ready for
    `model.head`, and the context at the end.
    """
    context, predicted = context or Context.empty(model), []
    if context.length:
        raise UserError(f"a rollout begins with a new window, but {context.length} tokens of one are awake")
    if not labelled.any():
        raise UserError("no position is labelled: loss_mask must be true somewhere")

    def in_window(i: int, kind: int, tokens: Tensor, context: Context) -> tuple[Tensor, Context]:
        output, end = (True, "forget") if kind == PREDICTED else (False, "sleep")
        watch = partial(observe, i) if observe and not output else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and kind != OUT_OF_REACH):
            return step(model, tokens, context, config, end, output=output, backward=backward, observe=watch)

    kinds = backward.reached(labelled, to_end=to_end).int() + labelled
    for i, window in enumerate(tokens.split(config.window_size, dim=1)):
        h, context = by_kind(kinds[:, i], window, context, partial(in_window, i))
        predicted += [h] if labelled[:, i].any() else []
    return torch.cat(predicted, dim=1), context
