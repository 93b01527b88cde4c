"""Decoding through the ordinary wake path: one forward pass a token, in bounded memory."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from reverie.model import SleepingModel
from reverie.sleep import Context, SleepConfig, read


@torch.no_grad()
def greedy(
    model: SleepingModel, prompt: Int[Tensor, "B T"], config: SleepConfig, num_tokens: int
) -> Int[Tensor, "B num_tokens"]:
    """The likeliest token after the prompt, then after that one, and so on.

    The prompt is read as any text is: slept over whenever the window is full. All rows go on to the end; what follows
    a row's end token is for the caller to cut off.

    Args:
        num_tokens: at least 1.
    """
    logits, context = read(model, prompt, Context.empty(model), config, newest_only=True)
    tokens = [logits[:, -1].argmax(-1)]
    while len(tokens) < num_tokens:
        logits, context = read(model, tokens[-1][:, None], context, config)
        tokens.append(logits[:, -1].argmax(-1))
    return torch.stack(tokens, dim=1)
