"""A token awake as it was compiled, for models of which it was."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from reverie.model import SleepingModel, Tokens
from reverie.sleep.config import SleepConfig, plan
from reverie.sleep.context import Beside, Context


def token_awake(
    model: SleepingModel, tokens: Tokens, context: Context, config: SleepConfig
) -> tuple[Float[Tensor, "B 1 vocab"], Context] | None:
    """What `read` gives for one token that fits into the window; None if that is not what was compiled.

    The token before which a full window is slept over goes the usual way.
    """
    # Of the class itself: one that inherits it, or hands attributes on, may have blocks of its own.
    made: dict[int, Any] = getattr(model, "awake", {}) if "awake" in vars(type(model)) else {}
    compiled = made.get(len(tokens)) if made else None
    if compiled is None or context.length >= config.window_size:
        return None
    if not compiled.takes(tokens, context.state, config.window_size):
        return None
    logits, hs, state = compiled(tokens, context.state)
    context = context._replace(state=state, length=context.length + 1)
    N, a, b, _ = plan(model, config)
    if N == 1:
        return logits, context
    embedded, entered = getattr(model, "reads_embedded", False), getattr(model, "injects", False)
    beside = Beside(hs[0].clone() if embedded else None, hs[a].clone() if entered else None)
    return logits, context.with_first_pass(hs[b].clone(), beside)  # copies: a view would keep h of all blocks
