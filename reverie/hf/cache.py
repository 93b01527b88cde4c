"""`SleepCache`: what a sleeping model knows between two calls, passed as `past_key_values`.

The rows of a batch may have begun at different tokens (left padding), so their windows end at different ones. Rows that
began together are a group with a `Context` of its own, and every row is computed as if it were alone.
"""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache

from reverie.errors import UserError
from reverie.memory.memory import Memory
from reverie.model import select_rows
from reverie.sleep import Context


class Group(NamedTuple):
    """Rows of a batch that began at the same token."""

    rows: Int[Tensor, " rows"]
    padding: int  # tokens before the text
    context: Context


class SleepCache(Cache):
    """Empty at first. `seen` counts the tokens of a row, evicted and padding ones too."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.groups: list[Group] = []
        self.seen = 0
        self.complete = True  # whether the newest token of every row is text
        self.origin: Memory | None = None  # what it was made of, until a model has taken it up

    @property
    def contexts(self) -> list[Context]:
        return [group.context for group in self.groups]

    @property
    def batch_size(self) -> int:
        return sum(len(group.rows) for group in self.groups) or -1

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_croppable(self) -> bool:
        return False

    def reset(self) -> None:
        self.groups, self.seen, self.complete = [], 0, True

    def crop(self, tokens_to_remove: int) -> None:
        raise UserError(
            "tokens that a sleeping model has read cannot be taken back: there is no crop, and no assistant"
        )

    def reorder_cache(self, beam_idx: Int[Tensor, " batch"]) -> None:
        """Row i goes on from what row beam_idx[i] was, as beam search asks."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.groups:
            device = self.groups[0].rows.device
            self.batch_select_indices(torch.arange(self.batch_size, device=device).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Int[Tensor, " batch"]) -> None:
        """Keep these rows, in this order; one may come several times."""
        chosen: list[Group] = []
        for group in self.groups:
            device = group.rows.device
            place = {row: i for i, row in enumerate(group.rows.tolist())}
            taken = [(new, place[old]) for new, old in enumerate(indices.tolist()) if old in place]
            if taken:
                rows, sources = (torch.tensor(column, device=device) for column in zip(*taken, strict=True))
                chosen.append(Group(rows, group.padding, select_rows(group.context, sources)))
        self.groups = chosen


def begin(mask: Tensor | None, tokens: Tensor, context: Context) -> SleepCache:
    """The cache before the first tokens [B, T].

    Args:
        mask: [B, T], 0 on padding, which stands before a text or after it.
        context: what the rows know already: nothing, or what a memory holds of earlier texts.

    Raises:
        UserError: a row is padding throughout, or has padding inside its text.
    """
    cache = SleepCache()
    B, T = tokens.shape[:2]
    rows = torch.arange(B, device=tokens.device)
    if mask is None or (mask.shape == tokens.shape[:2] and bool(mask.all())):
        cache.groups = [Group(rows, 0, context)]
        return cache
    if mask.shape != tokens.shape[:2]:
        raise UserError(f"attention_mask must be [{B}, {T}] as the tokens are, got {list(mask.shape)}")
    text = mask.bool()
    first = text.int().argmax(1)
    last = T - 1 - text.flip(1).int().argmax(1)
    if not bool(text.any(1).all()):
        raise UserError(f"row {int((~text.any(1)).int().argmax())} of attention_mask is padding throughout")
    if bool((text.sum(1) != last - first + 1).any()):
        raise UserError("attention_mask must be 1 on every token of a text: padding belongs before it or after it")
    cache.complete = bool((last == T - 1).all())
    for padding in first.unique().tolist():
        together = rows[first == padding]
        cache.groups.append(Group(together, padding, select_rows(context, together)))
    return cache


def cache_of(memory: Memory) -> SleepCache:
    """A cache with what a memory holds, for `past_key_values`; the memory itself stays as it is.

        memory = sleep_over(model, book_ids)
        model.generate(question_ids, past_key_values=cache_of(memory))

    Rows of the question belong to rows of the memory: `memory.branch(n)` makes room for n questions about one text.
    They may have padding before them, with the attention_mask that says so.
    """
    cache = SleepCache()
    cache.groups = [Group(torch.arange(memory.batch_size, device=memory.tokens.device), 0, memory.context)]
    cache.origin = memory
    return cache
