"""The next token of an answer: the likeliest, or one that is drawn; and prose that does not go round in circles.

The penalty is that of "DRY" sampling (p-e-w, 2024, https://github.com/oobabooga/text-generation-webui/pull/5677): of a
token that would go on as an earlier place of the answer did, after the same n tokens as there. It grows exponentially
with n, so no passage comes again and again; words come as often as they like, names and short phrases almost so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

PROSE_TEMPERATURE = 0.3
_COLDEST = 1e-30  # temperature; colder, logits would have no quotients in float32
_GROWTH = 1.75  # of the penalty with every further token; it is 1 nat for two tokens that come again
_LONGEST = 40  # tokens compared, where the penalty is beyond any logit


def choose(
    logits: Float[Tensor, " vocab"],
    said: Sequence[int],
    temperature: float,
    random: torch.Generator,
    *,
    prose: bool,
    top_p: float = 1.0,
) -> int:
    """The token that goes on after those that were said: at temperature 0 the likeliest, whatever it repeats.

    Args:
        top_p: of the likeliest tokens as few are drawn from as have this share, above 0, together.
    """
    if temperature == 0:
        return int(logits.argmax())
    logits = logits.float()
    if prose:
        repeats = repeated(said)
        ids = torch.tensor(list(repeats), dtype=torch.long, device=logits.device)
        penalties = [_GROWTH ** (n - 1) for n in repeats.values()]
        logits = logits.index_add(0, ids, logits.new_tensor(penalties), alpha=-1)
    shares = (logits / max(temperature, _COLDEST)).softmax(-1)
    if top_p < 1:
        best, ids = shares.sort(descending=True)
        others = (best.cumsum(0) - best >= top_p).index_fill(0, ids.new_zeros(1), False)  # a share may round to 0
        shares = shares.scatter(0, ids[others], 0.0)
    return int(torch.multinomial(shares, 1, generator=random))


def repeated(said: Sequence[int]) -> dict[int, int]:
    """Tokens that came after an earlier occurrence of the newest n ones, and the largest n, at least 1, for each."""
    longest = dict[int, int]()
    for i in range(1, len(said)):
        n = 0
        while n < min(i, _LONGEST) and said[i - 1 - n] == said[-1 - n]:
            n += 1
        if n:
            longest[said[i]] = max(n, longest.get(said[i], 0))
    return longest
