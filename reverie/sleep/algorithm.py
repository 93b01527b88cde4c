"""Sleep: N passes over a full window, the result in fast weights, then the window is forgotten (paper Algorithm 1).

    wake      one ordinary forward pass over new tokens; that is also pass 1 of the sleep to come
    sleep     when the window is full: the other N − 1 passes over it, then evict
    evict     clear the cache; only fast weights go on (under sliding eviction the newest L − 1 tokens stay too)

`read` drives them over a text that arrives in pieces, `consolidate` over one in which nothing is predicted, and
`rollout`, in a file of its own, over a training batch with labels. All take the same `step` over a window, so training,
evaluation and generation cannot disagree.
The model is known only through `SleepingModel`. Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.errors import UserError
from reverie.model import SleepingModel, State, Tokens, evict
from reverie.sleep.awake import token_awake
from reverie.sleep.config import SleepConfig, plan
from reverie.sleep.context import Beside, Context, OnWindow
from reverie.sleep.gradients import EXACT, Backward, Observe
from reverie.sleep.halting import Halting
from reverie.sleep.side_by_side import window_by_window


def wake(
    model: SleepingModel,
    tokens: Tokens,
    context: Context,
    config: SleepConfig,
    *,
    output: bool = True,
    backward: Backward = EXACT,
    observe: Observe | None = None,
) -> tuple[Float[Tensor, "B T width"], Context]:
    """One ordinary forward pass over tokens that fit into the window.

    Without `output` nobody reads h, and what sleep will redo is left out: for a window given whole, to be slept over.

    Returns h [B, T, width], ready for `model.head`, and the context with the tokens appended.
    """
    T, L = tokens.shape[1], config.window_size
    if context.length + T > L:
        raise UserError(f"{T} tokens do not fit after {context.length} in a window of {L}")
    N, a, b, kept = plan(model, config)
    stop = model.num_blocks if output else b if N > 1 else kept
    run = backward.first_runner(model, L, 1 if output else backward.first_pass(N), observe)
    beside, looped, h, state = run(tokens, context.state, (a, b) if N > 1 else (0, stop), stop, output=output or N > 1)
    context = context._replace(state=state, length=context.length + T)
    return h, context.with_first_pass(looped, beside) if N > 1 else context


def sleep(
    model: SleepingModel,
    context: Context,
    config: SleepConfig,
    *,
    backward: Backward = EXACT,
    observe: Observe | None = None,
) -> Context:
    """Passes 2 … N over the window, from pass 1's h and fast weights, then eviction.

    Each pass has a cache of its own: it sees what eviction kept of earlier windows, and nothing of the pass before but
    h and the fast weights. The blocks after the loop run once, on the last h, as if pass 1 had not touched them.

    With `tolerance`, N is the most: every row of the batch stops by itself (`halting.py`).
    """
    N, a, b, kept = plan(model, config)
    if N == 1 or not context.length:
        return forget(context._replace(passes=context.passes + int(context.length > 0)), config)
    run = backward.runner(model.blocks, config.window_size, backward.first_pass(N), observe)
    run, inject = partial(run, bidirectional=config.bidirectional_sleep), cast(Any, getattr(model, "inject", None))

    def one_pass(n: int, h: Tensor, state: State, before: State, beside: Beside) -> tuple[Tensor, State]:
        read = n < N or b < kept  # who reads this pass's h: the next pass, or the blocks after the loop
        stop = b if read else min(b, kept)
        if beside.entered is not None:
            h = inject(n, h, beside.entered)
        h, passed = run(n, h, State(state.fast_weights, before.cache), a, stop, output=read, embedded=beside.embedded)
        return h, state.splice(passed, a, stop)

    once = Halting(backward.truncated(one_pass, config, N), N, config.tolerance)
    h, state, before, beside = torch.cat(context.window, dim=1), context.state, context.window_start, context.beside
    for n in range(2, N + 1):
        h, state = once(n, h, state, before, beside)
    state = state.splice(before, b, model.num_blocks)
    _, state = run(once.newest, h, state, b, kept, output=False, embedded=beside.embedded)
    return forget(Context(state, before, passes=context.passes + once.passes), config)


def forget(context: Context, config: SleepConfig) -> Context:
    """Evict without sleep: the end of a window that was only predicted in."""
    state = evict(context.state, config.eviction, config.window_size)
    return Context(state, state, passes=context.passes)


def read(
    model: SleepingModel,
    tokens: Tokens,
    context: Context,
    config: SleepConfig,
    *,
    newest_only: bool = False,
    backward: Backward = EXACT,
    on_window: OnWindow = lambda windows, context: None,
) -> tuple[Float[Tensor, "B T_out vocab"], Context]:
    """Go on with a text, in pieces of any size. A full window is slept over when the next token comes.

    Returns the logits of all tokens, or with `newest_only` of the last one alone, at less cost.
    """
    if (done := token_awake(model, tokens, context, config)) is not None:
        return done
    logits, windows = [], context.windows(tokens, config.window_size)
    if newest_only:
        *before, newest = windows
        lengths = [tokens.shape[1] - newest.shape[1]] * len(tokens)
        context, windows = _asleep(model, before, lengths, context, config, backward, None, on_window), [newest]
    for i, window in enumerate(windows, 1):
        end = "stay" if i == len(windows) else "sleep"
        h, context = step(model, window, context, config, end, output=True, backward=backward)
        logits.append(model.head(h[:, -1:] if newest_only else h))
        if end == "sleep":
            on_window(i, context)
    return torch.cat(logits, dim=1), context


def consolidate(
    model: SleepingModel,
    tokens: Tokens,
    context: Context,
    config: SleepConfig,
    *,
    lengths: Sequence[int] | None = None,
    on_window: OnWindow = lambda windows, context: None,
    observe: Observe | None = None,
) -> Context:
    """Go on with texts, and sleep over every window of them, the last and shorter one too; the context after that.

    Args:
        lengths: tokens of each row, where rows differ, which sliding eviction does not allow; the others are not read.
        on_window: called after every window, as by `read` after those that are slept over.
    """
    lengths = [tokens.shape[1]] * len(tokens) if lengths is None else lengths
    if config.eviction == "sliding" and len(set(lengths)) > 1:
        raise UserError("under sliding eviction the texts of a batch must be equally long: sleep over them one by one")
    windows = context.windows(tokens, config.window_size)
    return _asleep(model, windows, lengths, context, config, EXACT, observe, on_window)


def _asleep(
    model: SleepingModel,
    windows: Sequence[Tensor],
    lengths: Sequence[int],
    context: Context,
    config: SleepConfig,
    backward: Backward,
    observe: Observe | None,
    on_window: OnWindow,
) -> Context:
    """Sleep over windows of texts of these lengths."""

    def one(tokens: Tokens, context: Context) -> Context:
        return step(model, tokens, context, config, "sleep", output=False, backward=backward, observe=observe)[1]

    newest = context
    for i, newest in enumerate(window_by_window(one, model, windows, lengths, context, config, observe), 1):
        on_window(i, newest)
    return newest


def step(
    model: SleepingModel,
    tokens: Tokens,
    context: Context,
    config: SleepConfig,
    end: Literal["stay", "sleep", "forget"],
    *,
    output: bool,
    backward: Backward = EXACT,
    observe: Observe | None = None,
) -> tuple[Tensor, Context]:
    """Tokens of one window, after sleep where the one before is full; then sleep over them, forget or stay."""

    def run(tokens: Tokens, context: Context) -> tuple[Tensor, Context]:
        if context.length == config.window_size:
            context = sleep(model, context, config, backward=backward, observe=observe)
        h, context = wake(model, tokens, context, config, output=output, backward=backward, observe=observe)
        if end == "sleep":
            context = sleep(model, context, config, backward=backward, observe=observe)
        return h if output else h.detach(), forget(context, config) if end == "forget" else context

    return backward.keep("window", run)(tokens, context)
