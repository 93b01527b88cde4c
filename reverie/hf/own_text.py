"""Text that a model writes before it is trained: prose of several kinds, which it must go on with as before."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from reverie.hf.causal_lm import PretrainedLM
from reverie.hf.reading import AWAKE
from reverie.pretrained.speaker import Speaker
from reverie.sleep import Context, read

_AT_ONCE = 32  # texts
_LONGEST = 320  # tokens of one
_TEMPERATURE = 0.9
_KINDS = "a long story", "a letter to a friend", "a report for a newspaper", "a travel diary", "a speech", "a dialogue"
_ABOUT = (
    "a journey by train",
    "the sea in winter",
    "an old house",
    "a market in the morning",
    "two brothers",
    "a garden",
    "the invention of the clock",
    "a school in the mountains",
    "a storm",
    "how bread is made",
    "a lost letter",
    "music",
)


def own_windows(
    model: PretrainedLM, speaker: Speaker, count: int, window_tokens: int, seed: int
) -> Int[Tensor, "count window_tokens"]:
    """Windows of texts that the model writes when it is asked for stories, letters and the like.

    A function of the model and these arguments, up to rounding.
    """
    generator, ids = torch.Generator().manual_seed(seed), list[int]()
    asked = [speaker.turn(f"Write {kind} about {about}.") for kind, about in itertools.product(_KINDS, _ABOUT)]
    by_length: dict[int, list[list[int]]] = {}
    for i in torch.randperm(len(asked), generator=generator).tolist():
        prompt = speaker.encode(asked[i])[0]
        by_length.setdefault(len(prompt), []).append(prompt)
    for some in itertools.cycle(by_length.values()):  # side by side, those of equal length
        if len(ids) >= count * window_tokens:
            break
        prompts = torch.tensor(list(itertools.islice(itertools.cycle(some), _AT_ONCE)), device=model.lm.device)
        for text in _written(model, speaker, prompts, generator):
            ids += text
    return torch.tensor(ids[: count * window_tokens]).view(count, window_tokens)


@torch.no_grad()
def _written(
    model: PretrainedLM, speaker: Speaker, prompts: Int[Tensor, "B T"], generator: torch.Generator
) -> Iterator[list[int]]:
    """What the model answers, without the token that ends it; at least one token each."""
    logits, context = read(model, prompts, Context.empty(model), AWAKE, newest_only=True)
    written, ended = list[Tensor](), torch.zeros(len(prompts), dtype=torch.bool)
    while len(written) < _LONGEST and not bool(ended.all()):
        newest = logits[:, -1].float().cpu() / _TEMPERATURE
        if not written:
            newest[:, speaker.end_id] = -torch.inf
        tokens = torch.multinomial(newest.softmax(-1), 1, generator=generator)
        written.append(tokens)
        ended |= tokens[:, 0] == speaker.end_id
        logits, context = read(model, tokens.to(model.lm.device), context, AWAKE)
    for row in torch.cat(written, dim=1).tolist():
        yield row[: row.index(speaker.end_id)] if speaker.end_id in row else row
