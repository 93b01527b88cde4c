"""Sleep: N passes over a full window, the result in fast weights, then the window is forgotten (paper Algorithm 1).

    wake      one ordinary forward pass over new tokens; that is also pass 1 of the sleep to come
    sleep     when the window is full: the other N − 1 passes over it, then evict
    evict     clear the cache; only fast weights go on (under sliding eviction the newest L − 1 tokens stay too)

`read` drives them over a text that arrives in pieces, `rollout` over a training batch with labels. Both are the same
functions in the same order, so training, evaluation and generation cannot disagree.
The model is known only through `SleepingModel`. Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from reverie.errors import UserError
from reverie.model import Eviction, SleepingModel, State, Tokens, evict
from reverie.sleep.gradients import EXACT, Backward, Observe, through
from reverie.sleep.halting import Sleepers, in_order
from reverie.sleep.labels import in_labelled, labelled_windows


class SleepConfig(BaseModel):
    """When and how long a model sleeps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_size: int = Field(ge=1, description="L, tokens awake before sleep")
    num_sleep_passes: int = Field(default=1, ge=1, description="N; 1 is the ordinary hybrid")
    looped_blocks: tuple[int, int] | None = Field(default=None, description="blocks [a, b) of a pass; all if absent")
    eviction: Eviction = "hard"
    # A text wakes behind the first pass that changes its fast weights by less, relatively.
    tolerance: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="see settling.py")

    @model_validator(mode="after")
    def _range(self) -> SleepConfig:
        if self.looped_blocks is not None and not 0 <= self.looped_blocks[0] < self.looped_blocks[1]:
            raise ValueError(f"looped_blocks must be [a, b] with 0 <= a < b, got {list(self.looped_blocks)}")
        return self


class Context(NamedTuple):
    """What a model knows between two calls."""

    state: State  # after the newest token
    window_start: State  # as this window found it
    window: tuple[Tensor, ...] = ()  # h [B, T, D] behind the looped blocks, pass 1, for this window's tokens
    length: int = 0  # tokens in this window
    passes: int | Int[Tensor, " B"] = 0  # spent on all windows slept over; by row where they wake by themselves

    @classmethod
    def empty(cls, model: SleepingModel) -> Context:
        state = State.empty(model.num_blocks)
        return cls(state, state)


class Plan(NamedTuple):
    """Which blocks run when, for one model and one `SleepConfig`."""

    passes: int  # N, or 1 where no pass could leave anything behind
    a: int  # the looped blocks are [a, b)
    b: int
    kept: int  # blocks from here on leave nothing behind that outlives the window


def plan(model: SleepingModel, config: SleepConfig) -> Plan:
    """Raises UserError where `looped_blocks` does not fit the model."""
    a, b = config.looped_blocks or (0, model.num_blocks)
    if b > model.num_blocks:
        raise UserError(f"looped_blocks [{a}, {b}] must end at or before {model.num_blocks}, the number of blocks")
    kept = model.num_blocks if config.eviction == "sliding" else max(model.fast_weight_blocks, default=-1) + 1
    return Plan(config.num_sleep_passes if kept > a else 1, a, b, kept)


def wake(
    model: SleepingModel,
    tokens: Tokens,
    context: Context,
    config: SleepConfig,
    *,
    output: bool = True,
    backward: Backward = EXACT,
    observe: Observe | None = None,
) -> tuple[Float[Tensor, "B T D"], Context]:
    """One ordinary forward pass over tokens that fit into the window.

    Without `output` nobody reads h, and what sleep will redo is left out: for a window given whole, to be slept over.

    Returns h [B, T, D], ready for `model.head`, and the context with the tokens appended.
    """
    if context.length + tokens.shape[1] > config.window_size:
        raise UserError(
            f"{tokens.shape[1]} tokens do not fit behind {context.length} in a window of {config.window_size}"
        )
    N, _, b, kept = plan(model, config)
    stop = model.num_blocks if output else b if N > 1 else kept
    run = backward.first_runner(model, config.window_size, 1 if output else backward.first_pass(N), observe)
    looped, h, state = run(tokens, context.state, b if N > 1 else stop, stop, output=output or N > 1)
    window = (*context.window, looped) if N > 1 else context.window
    return h, context._replace(state=state, window=window, length=context.length + tokens.shape[1])


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
    h and the fast weights. The blocks behind the loop run once, on the last h, as if pass 1 had not touched them.

    With `tolerance`, N is the most: every text of the batch wakes by itself (`settling.py`).
    """
    N, a, b, kept = plan(model, config)
    first = backward.first_pass(N)
    run = backward.runner(model.blocks, config.window_size, first, observe)
    state, before, passes = context.state, context.window_start, context.passes
    if N == 1 or not context.length:
        return forget(context._replace(passes=passes + int(context.length > 0)), config)

    def awake(n: int, h: Tensor, state: State, before: State, passes: int | Tensor) -> Context:
        _, state = run(n, h, state.splice(before, b, model.num_blocks), b, kept, output=False)
        return forget(Context(state, before, passes=passes + n), config)

    h, sleepers = torch.cat(context.window, dim=1), Sleepers(config.tolerance, truncated=first > 1)
    passes = passes if config.tolerance is None else h.new_zeros(len(h), dtype=torch.long) + passes
    for n in range(2, N + 1):
        read = n < N or b < kept  # who reads this pass's h: the next pass, or the blocks behind the loop
        state = through(state, before) if n == first else state  # where truncated gradients end
        begin = State(state.fast_weights, before.cache)
        h, passed = run(n, h, begin, a, b if read else min(b, kept), output=read)
        state = state.splice(passed, a, b)
        h, state, before, passes = sleepers.settle(n, begin, state, (h, state, before, passes), last=n == N)
        if not sleepers:
            break
    return in_order([awake(*part) for part in sleepers.awake], sleepers.rows)


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
) -> tuple[Float[Tensor, "B T_out vocab"], Context]:
    """Go on with a text, in pieces of any size. A full window is slept over when the next token comes.

    Returns the logits of all tokens, or with `newest_only` of the last one alone, at less cost.
    """
    if tokens.shape[1] == 0:
        raise UserError("there is nothing to read: tokens must hold at least one, got T = 0")
    logits = []
    if context.length == config.window_size:
        context = sleep(model, context, config, backward=backward)
    through_window = backward.keep("window", _through_window)
    while tokens.shape[1]:
        room = config.window_size - context.length
        window, tokens = tokens[:, :room], tokens[:, room:]
        more = tokens.shape[1] > 0
        output = not (newest_only and more)
        h, context = through_window(model, window, context, config, output, "sleep" if more else "stay", backward)
        if output:
            logits.append(model.head(h[:, -1:] if newest_only else h))
    return torch.cat(logits, dim=1), context


def rollout(
    model: SleepingModel,
    tokens: Int[Tensor, "B T"],
    loss_mask: Bool[Tensor, "B T"],
    config: SleepConfig,
    *,
    labelled: Sequence[bool] | None = None,
    backward: Backward = EXACT,
) -> tuple[Float[Tensor, "scored vocab"], Context]:
    """The logits of the labelled positions, in the order of `tokens[loss_mask]`, and the context at the end."""
    labelled = labelled or labelled_windows(loss_mask, config.window_size)
    h, context = rollout_hidden(model, tokens, config, labelled, backward=backward)
    return model.head(h[in_labelled(loss_mask, config.window_size, labelled)]), context


def rollout_hidden(
    model: SleepingModel,
    tokens: Int[Tensor, "B T"],
    config: SleepConfig,
    labelled: Sequence[bool],
    *,
    backward: Backward = EXACT,
    observe: Callable[[int, int, Tensor, State, State], None] | None = None,
) -> tuple[Float[Tensor, "B T_labelled D"], Context]:
    """Algorithm 1 up to the head: sleep over windows without labels, a last, shorter one too; predict in the others.

    Args:
        labelled: for each window whether it holds a label of any row, in this batch or in other parts of it.
        observe: called behind every pass, also one made again, with the window's index and what `Observe` says.

    Returns h of all tokens in labelled windows, ready for `model.head`, and the context at the end.
    """
    context, predicted = Context.empty(model), []
    for i, window in enumerate(tokens.split(config.window_size, dim=1)):
        with torch.set_grad_enabled(torch.is_grad_enabled() and backward.reaches(i, labelled)):
            through_window, watch = backward.keep("window", _through_window), observe and partial(observe, i)
            end = "forget" if labelled[i] else "sleep"
            h, context = through_window(model, window, context, config, labelled[i], end, backward, watch)
        predicted += [h] if labelled[i] else []
    if not predicted:
        raise UserError("no position is labelled: loss_mask must be true somewhere")
    return torch.cat(predicted, dim=1), context


def _through_window(
    model: SleepingModel,
    tokens: Tensor,
    context: Context,
    config: SleepConfig,
    output: bool,
    end: Literal["stay", "sleep", "forget"],
    backward: Backward,
    observe: Observe | None = None,
) -> tuple[Tensor, Context]:
    """Tokens of one window; at its end the model sleeps over it, forgets it, or stays in it."""
    h, context = wake(model, tokens, context, config, output=output, backward=backward, observe=observe)
    if end == "sleep":
        return h, sleep(model, context, config, backward=backward, observe=observe)
    return h, forget(context, config) if end == "forget" else context
