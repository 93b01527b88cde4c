"""Hybrids whose passes go another way than in sleep. The library is told N = 1, and `blocks` makes the passes.

With N = 1 it calls `blocks` once a window: with `output` where the row is predicted in, without where it is slept over.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from reverie.errors import UserError
from reverie.model import HybridConfig, HybridLM, State


class OtherPasses(HybridLM):
    """A hybrid with as many passes as it is made with. Its parameters are those of `HybridLM`, by name and shape."""

    def __init__(self, config: HybridConfig, passes: int) -> None:
        super().__init__(config)
        self.passes = passes

    def one_pass(
        self, h: Tensor, state: State, start: int, stop: int, *, output: bool, **more: Any
    ) -> tuple[Tensor, State]:
        """What `HybridLM.blocks` makes of a window from the caches that `state` has.

        Raises:
            UserError: the window has begun before, so a pass over all of it would need a cache of each pass.
        """
        if any(entry is not None for entry in state.cache):
            raise UserError("a model with other passes takes whole windows, and part of this one is cached")
        return super().blocks(h, state, start, stop, output=output, **more)


class LoopedAwake(OtherPasses):
    """All passes are spent on windows that are predicted in; windows without labels get one.

    Each pass starts from the fast weights that the window found: from those that the pass before left, a token would
    know what comes after it. Those of the last pass go on.
    """

    def blocks(
        self, h: Tensor, state: State, start: int, stop: int, *, span: int, output: bool = True, **more: Any
    ) -> tuple[Tensor, State]:
        h, new = self.one_pass(h, state, start, stop, span=span, output=output, **more)
        for _ in range(self.passes - 1 if output else 0):
            h, new = self.one_pass(h, state, start, stop, span=span, output=output, **more)
        return h, new


class LastPassFromFirst(OtherPasses):
    """Sleep whose last pass starts from the fast weights that pass 1 left, and from the h of the pass before it.

    So what the passes between wrote reaches the memory through h alone.
    """

    def blocks(
        self, h: Tensor, state: State, start: int, stop: int, *, span: int, output: bool = True, **more: Any
    ) -> tuple[Tensor, State]:
        if output:
            return self.one_pass(h, state, start, stop, span=span, output=True, **more)
        new, found = state, [state.fast_weights]  # by the passes so far
        for n in range(1, self.passes + 1):
            last = n == self.passes
            before = state._replace(fast_weights=found[min(1, n - 1)] if last else found[-1])
            end = stop if last else self.num_blocks
            h, new = self.one_pass(h, before, start, end, span=span, output=not last, **more)
            found.append(new.fast_weights)
        return h, new
