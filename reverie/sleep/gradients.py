"""How gradients go back through windows and passes: what is kept for them, and where they stop.

Training through W windows of N passes keeps the activations of W · N passes, unless they are made again when the
backward pass comes by (activation checkpointing), or the gradient is not taken that far (truncation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from reverie.model import SleepingModel, State

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

Observe = Callable[[int, Tensor, State, State], None]
"""Called behind blocks that ran in pass n over a window: n, the h they made, the state before, the state after."""

Run = Callable[..., tuple[Tensor, State]]
"""`SleepingModel.blocks` with the number of the pass in front and without the span."""


class Backward(BaseModel):
    """The exact gradient with all activations kept, unless it says otherwise.

    `activation_checkpoint` changes memory and time, not the gradient:
        "none"    everything is kept
        "pass"    of each pass over a window, its input h and fast weights; the pass runs again in the backward
        "window"  of each window, the fast weights it found; its passes run again as under "pass"

    `bptt_passes` = k: gradients go back through the last k passes over a window. For what earlier passes made of the
    fast weights, the gradient takes the identity: it reaches the windows before as if those passes had left the memory
    alone.

    `bptt_windows` = m: gradients of a label reach the m windows before its own. They end where a window is reached from
    no label, so where labels are closer together, those of the later one go as far as those of the earlier one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    activation_checkpoint: Literal["none", "pass", "window"] = "none"
    bptt_passes: int | None = Field(default=None, ge=1)
    bptt_windows: int | None = Field(default=None, ge=0)

    def first_pass(self, passes: int) -> int:
        """The first of N passes that gradients go back through."""
        return 1 if self.bptt_passes is None else max(passes - self.bptt_passes, 0) + 1

    def reaches(self, window: int, labelled: Sequence[bool]) -> bool:
        """Whether gradients of a label go back into a window."""
        last = len(labelled) if self.bptt_windows is None else window + self.bptt_windows + 1
        return any(labelled[window:last])

    def keep(self, unit: Literal["pass", "window"], run: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        """`run`, which is a pass or a window, such that of its activations only those asked for are kept."""
        wanted = self.activation_checkpoint in (unit, "window") and torch.is_grad_enabled()
        return partial(_checkpointed, run) if wanted else run

    def runner(
        self, blocks: Callable[..., tuple[Tensor, State]], span: int, first: int, observe: Observe | None
    ) -> Run:
        """`blocks` in pass n of a window, with gradients from pass `first` on."""

        def run(n: int, h: Tensor, state: State, start: int, stop: int, *, output: bool = True) -> tuple[Tensor, State]:
            if start >= stop:
                return h, state
            with torch.set_grad_enabled(torch.is_grad_enabled() and n >= first):
                # No more of the state than these blocks read: all that goes in may be kept for the backward pass.
                part = State.empty(len(state.cache)).splice(state, start, stop)
                new_h, new_part = self.keep("pass", blocks)(h, part, start, stop, span=span, output=output)
            new_state = state.splice(new_part, start, stop)
            if observe is not None:
                observe(n, new_h if output else new_h.detach(), state, new_state)  # without output nobody reads it
            return new_h, new_state

        return run

    def first_runner(
        self, model: SleepingModel, span: int, first: int, observe: Observe | None
    ) -> Callable[..., tuple[Tensor, Tensor, State]]:
        """Pass 1 over tokens: blocks [0, stop) after the embedding, with gradients if `first` is 1.

        It returns h before block `loop_end`, h at the end, and the state: in one call of a model with `embed_blocks`.
        """
        run = self.runner(model.blocks, span, first, observe)
        at_once: Any = getattr(model, "embed_blocks", None)

        def in_parts(tokens: Tensor, state: State, loop_end: int, stop: int, *, output: bool) -> Any:
            looped, state = run(1, model.embed(tokens), state, 0, loop_end, output=output)
            return looped, *run(1, looped, state, loop_end, stop)

        def whole(tokens: Tensor, state: State, loop_end: int, stop: int, *, output: bool) -> Any:
            with torch.set_grad_enabled(torch.is_grad_enabled() and first == 1):
                looped, h, new_state = self.keep("pass", at_once)(tokens, state, loop_end, stop, span=span)
            if observe is not None:
                observe(1, h if output else h.detach(), state, new_state)
            return looped, h, new_state

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
