"""Windows of a text side by side, as far as one need not wait for the one before: small windows then cost less.

Under hard eviction nothing but fast weights goes from window to window. So blocks that run once a window run for many
windows in one call, in which the update rule alone goes from one to the next; and the last pass over a window shares
its calls with the first pass over the next. A token of a matrix product over few tokens takes longer than of one over
many. The results are those of one window after the other, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reverie.model import SleepingModel, State, Tokens
from reverie.sleep.config import SleepConfig, plan
from reverie.sleep.context import Context, by_kind
from reverie.sleep.gradients import Observe

MOST_TOKENS = 512  # in a call: with more, a token of a product is no cheaper
MOST_BYTES = 2**26  # of fast weights after each window of a call
FEW_TOKENS = 128  # of a window, at most, for its last pass to share calls with the next one: these leave nothing out


def group_size(model: SleepingModel, context: Context, config: SleepConfig, batch_size: int) -> int:
    """Windows of each text of a batch that are read side by side; 1: they are read one after the other.

    Without gradients alone, whose `Backward` counts by window.
    """
    alone = config.eviction != "hard" or config.tolerance is not None or context.length > 0
    # Of the class: what hands attributes on to another model may have blocks of its own.
    if alone or torch.is_grad_enabled() or not hasattr(type(model), "window_bytes"):
        return 1
    held: int | None = cast(Any, model).window_bytes
    if held is None:
        return 1
    return max(1, min(MOST_TOKENS // config.window_size, MOST_BYTES // max(held, 1)) // batch_size)


def window_by_window(
    one: Callable[[Tokens, Context], Context],
    model: SleepingModel,
    windows: Sequence[Tensor],
    lengths: Sequence[int],
    context: Context,
    config: SleepConfig,
    observe: Observe | None,
) -> Iterator[Context]:
    """Sleep over windows [B, L] of texts of these lengths, side by side where that can be; the context after each.

    Args:
        one: sleeps over one window of some rows, all of whose tokens they have.
    """

    def rows(size: int, tokens: Tokens, context: Context) -> Context:
        return one(tokens[:, :size], context) if size else context  # without tokens left, a text is over

    left, done = torch.tensor(lengths).clamp(max=sum(window.shape[1] for window in windows)), 0
    while done < len(windows):
        fits = min(group_size(model, context, config, len(left)), int(left.min()) // config.window_size)
        if fits > 1:
            whole = windows[done : done + fits]
            contexts, sizes = side_by_side(model, whole, context, config, observe), len(whole) * config.window_size
        else:
            whole = windows[done : done + 1]
            sizes = left.clamp(max=whole[0].shape[1])
            contexts = [by_kind(sizes, whole[0], context, rows)]
        for context in contexts:
            yield context
        left, done = left - sizes, done + len(whole)


def side_by_side(
    model: SleepingModel,
    windows: Sequence[Int[Tensor, "B L"]],
    context: Context,
    config: SleepConfig,
    observe: Observe | None = None,
) -> Iterator[Context]:
    """Sleep over whole windows, which follow each other; the context after each of them, observed as it comes."""
    N, a, b, kept = plan(model, config)
    B, W = len(windows[0]), len(windows)
    sweep = _Sweep(model, context.state, config.window_size, (B, W), observed=observe is not None)
    h = model.embed(torch.stack(list(windows), dim=1).flatten(0, 1))
    if getattr(model, "reads_embedded", False):
        sweep.embedded = _apart(h, B)
    if N == 1:
        sweep.run(dict.fromkeys(range(W), 1), h, 0, kept, output=False)
    else:
        entered = sweep.run(dict.fromkeys(range(W), 1), h, 0, a)
        looped = _loop(sweep, _apart(entered, B), config, (N, a, b, kept))
        if b < kept:
            sweep.run(dict.fromkeys(range(W), N), _together(looped), b, kept, output=False)
    state = context.state
    for w, (after, events) in enumerate(zip(sweep.after, sweep.events, strict=True), 1):
        for n, new_h, own, start, stop in events if observe else ():
            before, state = state, state.splice(own, start, stop)
            cast(Observe, observe)(n, new_h, before, state)
        yield Context(after, after, passes=context.passes + N * w)


def _loop(
    sweep: _Sweep, entered: Sequence[Float[Tensor, "B L D"]], config: SleepConfig, where: tuple[int, int, int, int]
) -> list[Tensor]:
    """The N passes over the looped blocks [a, b), from h before block a; h after the last pass, by window."""
    N, a, b, kept = where
    B, L = entered[0].shape[:2]
    shares, output, looped = B * L <= FEW_TOKENS and not config.bidirectional_sleep, b < kept, list[Tensor]()
    h = sweep.run({0: 1}, entered[0], a, b)
    for w, own in enumerate(entered):
        for n in range(2, N):
            h = sweep.run({w: n}, sweep.inject(n, h, own), a, b, bidirectional=config.bidirectional_sleep)
        h = sweep.inject(N, h, own)
        follows = w + 1 < len(entered)
        if follows and shares:
            h, first = _apart(sweep.run({w: N, w + 1: 1}, _together([h, entered[w + 1]]), a, b), B)
        else:
            h = sweep.run({w: N}, h, a, min(b, kept), output=output, bidirectional=config.bidirectional_sleep)
            first = sweep.run({w + 1: 1}, entered[w + 1], a, b) if follows else h
        looped.append(h)
        h = first
    return looped


class _Sweep:
    """Calls of blocks over some of W windows, and what they leave: fast weights alone, from one window to the next."""

    def __init__(
        self, model: SleepingModel, state: State, span: int, sizes: tuple[int, int], *, observed: bool
    ) -> None:
        self._model, self._newest, self._span, (self._B, W) = model, state, span, sizes
        self._observed = observed
        self.embedded: Sequence[Tensor] | None = None  # by window, for a model that reads it
        self.after = [state] * W  # each window
        self.events: list[list[tuple[int, Tensor, State, int, int]]] = [[] for _ in range(W)]
        """By window, where they are observed: the pass, h, and what blocks [start, stop) left."""

    def inject(self, n: int, h: Tensor, entered: Tensor) -> Tensor:
        """What pass n reads."""
        model: Any = self._model
        return model.inject(n, h, entered) if getattr(model, "injects", False) else h

    def run(
        self, passes: dict[int, int], h: Tensor, start: int, stop: int, *, output: bool = True, **more: Any
    ) -> Float[Tensor, "B*windows L D"]:
        """Blocks [start, stop) over windows that follow each other, with the number of the pass over each; their h."""
        if start >= stop:
            return h
        more = {name: value for name, value in more.items() if value}
        if self.embedded is not None:
            more["embedded"] = _together([self.embedded[w] for w in passes])
        if len(passes) > 1:
            more["windows"] = len(passes)
        part = State.empty(len(self._newest.cache)).splice(self._newest, start, stop)
        blocks: Any = self._model.blocks
        h, made = blocks(h, part, start, stop, span=self._span, output=output, **more)
        for i, (w, n) in enumerate(passes.items()):
            own = State(tuple(self._of(i, x, passes) for x in made.fast_weights), (None,) * len(made.cache))
            self._newest, self.after[w] = (x.splice(own, start, stop) for x in (self._newest, self.after[w]))
            if self._observed:
                self.events[w].append((n, _apart(h, self._B)[i], own, start, stop))
        return h

    def _of(self, i: int, x: Tensor | None, passes: dict[int, int]) -> Tensor | None:
        """Fast weights after one of these windows; a copy, since a view would keep those after all of them."""
        return x if x is None or len(passes) == 1 else _apart(x, self._B)[i].clone()


def _apart(x: Float[Tensor, "B*W ..."], B: int) -> Sequence[Float[Tensor, "B ..."]]:
    """Rows of W windows, by window."""
    return x.unflatten(0, (B, -1)).unbind(1)


def _together(windows: Sequence[Float[Tensor, "B ..."]]) -> Float[Tensor, "B*W ..."]:
    """Windows as rows, those of a text next to each other."""
    first = windows[0]
    return first if len(windows) == 1 else torch.stack([x.to(first.device) for x in windows], dim=1).flatten(0, 1)
