"""Decoding through the ordinary wake path: one forward pass a token, in bounded memory."""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from reverie.model import SleepingModel, numbers
from reverie.sleep import Context, SleepConfig, read


def greedy(
    model: SleepingModel, prompt: Int[Tensor, "B T"], config: SleepConfig, num_tokens: int
) -> Int[Tensor, "B num_tokens"]:
    """The tokens of `write` after a prompt that comes first: exactly `num_tokens`, at least 1."""
    return write(model, prompt, Context.empty(model), config, num_tokens)[0]


@torch.no_grad()
def write(
    model: SleepingModel,
    prompt: Int[Tensor, "B T"],
    context: Context,
    config: SleepConfig,
    num_tokens: int,
    *,
    end_ids: Collection[int] = (),
) -> tuple[Int[Tensor, "B written"], Float[Tensor, "B written"]]:
    """The likeliest token after the prompt, then after that one, and so on; and the probability of each.

    The prompt is read as any text is: slept over whenever the window is full.

    Args:
        num_tokens: the most that are written, at least 1.
        end_ids: all rows go on until each has written one of these; the caller cuts off what follows it in a row.
    """
    logits, context = read(model, prompt, context, config, newest_only=True)
    ends = torch.tensor(sorted(end_ids), dtype=torch.long, device=prompt.device)
    ended = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    tokens, probabilities = list[Tensor](), list[Tensor]()
    while True:
        newest = numbers(logits[:, -1]).argmax(-1, keepdim=True)
        tokens.append(newest)
        probabilities.append(logits[:, -1].float().softmax(-1).gather(-1, newest))
        ended |= torch.isin(newest[:, 0], ends)
        if len(tokens) == num_tokens or (end_ids and bool(ended.all())):
            return torch.cat(tokens, dim=1), torch.cat(probabilities, dim=1)
        logits, context = read(model, newest, context, config)


@torch.no_grad()
def token_by_token(
    model: SleepingModel, tokens: Int[Tensor, "B T"], context: Context, config: SleepConfig
) -> tuple[Float[Tensor, "B T vocab"], Context]:
    """Logits of tokens, one call each as in generation, and the context after the last."""
    logits = list[Tensor]()
    for token in tokens.split(1, dim=1):
        new, context = read(model, token, context, config)
        logits.append(new)
    return torch.cat(logits, dim=1), context


@torch.no_grad()
def log_probability(
    model: SleepingModel, prompt: Int[Tensor, "B T"], written: Int[Tensor, "B W"], context: Context, config: SleepConfig
) -> Float[Tensor, "B W"]:
    """Log probability of each of these tokens after the prompt and those of them before it, in nats."""
    logits, _ = read(model, torch.cat([prompt, written[:, :-1]], dim=1), context, config)
    shares = F.log_softmax(numbers(logits[:, prompt.shape[1] - 1 :]).float(), dim=-1)
    return shares.gather(-1, written[..., None])[..., 0]
