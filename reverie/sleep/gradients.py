"""How gradients go back through windows and passes: what is kept for them, and where they stop.

Training through W windows of N passes keeps the activations of W · N passes, unless they are made again when the
backward pass comes by (activation checkpointing), or the gradient is not taken that far (truncation).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from jaxtyping import Bool
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from reverie.errors import UserError
from reverie.model import SleepingModel, State
from reverie.sleep.config import SleepConfig
from reverie.sleep.context import Beside

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

Observe = Callable[[int, Tensor, State, State], None]
"""Called after blocks ran in pass n over a window, with n, the h they made, the state before and the state after."""

Pass = Callable[[int, Tensor, State, State, Beside], tuple[Tensor, State]]
"""Pass n over a window: n, h, the state after pass n − 1, the state before the window, and what it reads beside h
(`Beside`); gives h and the state after."""

Run = Callable[..., tuple[Tensor, State]]
"""`SleepingModel.blocks` with the number of the pass as first argument and without the span."""


class Backward(BaseModel):
    """The exact gradient with all activations kept, unless it says otherwise.

    `activation_checkpoint` changes memory and time, not the gradient:
        "none"    everything is kept
        "pass"    of each pass over a window, its input h and fast weights; the pass runs again in the backward
        "window"  of each window, the fast weights it found; its passes run again as under "pass"

    `bptt_passes` = k: gradients go back through the last k passes over a window. For what earlier passes made of the
    fast weights, the gradient takes the identity: it reaches the windows before as if those passes had left the memory
    alone.

    `bptt_windows` = m: gradients of a label reach the m windows before its own, and those of the context at the end the
    last m windows. In each row they end where a window is reached from no label, so where labels are closer together,
    those of the later one go as far as those of the earlier one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    activation_checkpoint: Literal["none", "pass", "window"] = "none"
    bptt_passes: int | None = Field(default=None, ge=1)
    bptt_windows: int | None = Field(default=None, ge=0)

    def first_pass(self, passes: int) -> int:
        """The first of N passes that gradients go back through."""
        return 1 if self.bptt_passes is None else max(passes - self.bptt_passes, 0) + 1

    def reached(self, labelled: Bool[Tensor, "B W"], *, to_end: bool) -> Bool[Tensor, "B W"]:
        """Which windows of which row gradients of a label go back into; with `to_end`, or of the context at the end."""
        W = labelled.shape[1]
        counts = pad(labelled.int(), (0, 1), value=to_end).cumsum(dim=1)  # the end is a label after the last window
        last = torch.arange(W).add(W if self.bptt_windows is None else self.bptt_windows).clamp(max=W)
        return counts[:, last] > pad(counts, (1, 0))[:, :W]

    def truncated(self, one_pass: Pass, config: SleepConfig, num_passes: int) -> Pass:
        """`one_pass`, through which gradients go back only where it is one of the last `bptt_passes`.

        Raises:
            UserError: with a tolerance, nobody knows which passes are the last.
        """
        first = self.first_pass(num_passes)
        if first == 1:
            return one_pass
        if config.tolerance is not None:
            raise UserError("bptt_passes counts from the last pass, which a tolerance does not know: give one of them")

        def cut(n: int, h: Tensor, state: State, before: State, beside: Beside) -> tuple[Tensor, State]:
            return one_pass(n, h, through(state, before) if n == first else state, before, beside)

        return cut

    def keep(self, unit: Literal["pass", "window"], run: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        """`run`, which is a pass or a window, such that of its activations only those asked for are kept."""
        wanted = self.activation_checkpoint in (unit, "window") and torch.is_grad_enabled()
        return partial(_checkpointed, run) if wanted else run

    def runner(
        self, blocks: Callable[..., tuple[Tensor, State]], span: int, first: int, observe: Observe | None
    ) -> Run:
        """`blocks` in pass n of a window, with gradients from pass `first` on."""

        def run(
            n: int, h: Tensor, state: State, start: int, stop: int, *, output: bool = True, **more: Any
        ) -> tuple[Tensor, State]:
            if start >= stop:
                return h, state
            more = {key: x for key, x in more.items() if x is not None and x is not False}
            with torch.set_grad_enabled(torch.is_grad_enabled() and n >= first):
                # No more of the state than these blocks read: all that goes in may be kept for the backward pass.
                part = State.empty(len(state.cache)).splice(state, start, stop)
                new_h, new_part = self.keep("pass", blocks)(h, part, start, stop, span=span, output=output, **more)
            new_state = state.splice(new_part, start, stop)
            if observe is not None:
                observe(n, new_h if output else new_h.detach(), state, new_state)  # without output nobody reads it
            return new_h, new_state

        return run

    def first_runner(
        self, model: SleepingModel, span: int, first: int, observe: Observe | None
    ) -> Callable[..., tuple[Beside, Tensor, Tensor, State]]:
        """Pass 1 over tokens: blocks [0, stop) after the embedding, with gradients if `first` is 1.

        It returns what later passes read beside h if the model does, h after the loop [a, b), h at the end, and the
        state: in one call of a model with `embed_blocks`.
        """
        reads_embedded, injects = getattr(model, "reads_embedded", False), getattr(model, "injects", False)
        run = self.runner(model.blocks, span, first, observe)
        at_once: Any = getattr(model, "embed_blocks", None)

        def beside(embedded: Tensor, entered: Tensor) -> Beside:
            return Beside(embedded if reads_embedded else None, entered if injects else None)

        def in_parts(tokens: Tensor, state: State, loop: tuple[int, int], stop: int, *, output: bool) -> Any:
            h, (a, b) = model.embed(tokens), loop if injects else (0, loop[1])
            embedded = h if reads_embedded else None
            entered, state = run(1, h, state, 0, a, embedded=embedded)
            looped, state = run(1, entered, state, a, b, output=output, embedded=embedded)
            return beside(h, entered), looped, *run(1, looped, state, b, stop, embedded=embedded)

        def whole(tokens: Tensor, state: State, loop: tuple[int, int], stop: int, *, output: bool) -> Any:
            with torch.set_grad_enabled(torch.is_grad_enabled() and first == 1):
                made = self.keep("pass", at_once)(tokens, state, loop, stop, span=span)
            embedded, entered, looped, h, new_state = made
            if observe is not None:
                observe(1, h if output else h.detach(), state, new_state)
            return beside(embedded, entered), looped, h, new_state

        return in_parts if at_once is None else whole


EXACT = Backward()


def _checkpointed(run: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
    """`checkpoint`, with the tensors inside a State or a Context handed over one by one.

    It keeps alive what it is given inside of other things: a window would keep the states of all its passes.
    """
    leaves, spec = tree_flatten((arguments, named))

    def run_leaves(*leaves: Any) -> Result:
        arguments, named = tree_unflatten(leaves, spec)
        return run(*arguments, **named)

    # A recorded step draws nothing, and could not read the random state.
    keep_rng = not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
    return checkpoint(run_leaves, *leaves, use_reentrant=False, preserve_rng_state=keep_rng)  # pyright: ignore[reportReturnType]


def through(state: State, start: State) -> State:
    """`state`, computed without gradients, as if its fast weights were those of `start` plus a constant."""
    fast_weights = tuple(
        now if now is None or before is None or not before.requires_grad else now + (before - before.detach())
        for now, before in zip(state.fast_weights, start.fast_weights, strict=True)
    )
    return state._replace(fast_weights=fast_weights)
