"""A memory in front of `generate`: a model of transformers answers from what it, or another process, has read."""

from __future__ import annotations

import torch

from reverie.hf.cache import Group, SleepCache
from reverie.memory.memory import Memory


def cache_of(memory: Memory) -> SleepCache:
    """What a memory holds, for `past_key_values`; the memory itself stays as it is.

        memory = sleep_over(model, book_ids)
        model.generate(question_ids, past_key_values=cache_of(memory))

    Rows of the question belong to rows of the memory: `memory.branch(n)` makes room for n questions about one text.
    They may be padded in front, with the attention_mask that says so.
    """
    cache = SleepCache()
    cache.groups = [Group(torch.arange(memory.batch_size, device=memory.tokens.device), 0, memory.context)]
    cache.origin = memory
    return cache
