"""`SleepCache`: what a sleeping model knows between two calls, passed as `past_key_values`.

Rows of a batch begin, wait and end at different tokens (attention_mask is 0 where a row is given padding), so their
windows end at different ones. Rows that have read equally many tokens, and always together, are a group with a
`Context` of its own; every row is computed as if it were alone.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers.cache_utils import Cache

from reverie.errors import UserError
from reverie.hf.group import Group
from reverie.memory.fingerprint import Mark
from reverie.memory.memory import Memory
from reverie.model import select_rows


class SleepCache(Cache):
    """Empty at first. `seen` counts the columns of the batch so far, evicted tokens and padding too."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.origin: Memory | None = None  # what it was made of, until a model has read on from it
        self.reset()

    def reset(self) -> None:
        self.groups: list[Group] = []
        self.seen = 0
        self.positions: Literal["either", "token", "column"] = "either"  # what position_ids have counted so far
        self.padding: Int[Tensor, " B"] | None = None  # `_where` padding stood in each row; None: there was none
        self.lead: Int[Tensor, " B"] | None = None  # columns of padding before each text
        self.mark: Mark | None = None  # how the model was in the newest call, where that is kept

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
        return True

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the newest columns of the batch, as assisted decoding does: as if they had never been read.

        Of a text the newest 64 tokens can be taken back, of all that were ever read of it, and the window in which
        these began, and the newest call if that is of 1,024 tokens or fewer; where tokens and embeddings follow each
        other, those of the newest kind.

        Args:
            tokens_to_remove: how many columns as a negative number, as in transformers; or how many are to stay.

        Raises UserError beyond what can be taken back; the cache is then as it was.
        """
        kept = int(tokens_to_remove) + (0 if tokens_to_remove > 0 else self.seen)
        if kept < 0:
            raise UserError(
                f"the cache holds {self.seen:,} tokens, of which {-tokens_to_remove:,} cannot be taken back"
            )
        if kept >= self.seen:
            return
        groups = [part for group in self.groups for part in group.back_to(kept)]
        if self.padding is not None:
            text = torch.zeros(self.batch_size, self.seen - kept, dtype=torch.bool, device=self.padding.device)
            for group in self.groups:
                if group.columns is not None:
                    rows, places = (group.columns >= kept).nonzero(as_tuple=True)
                    text[group.rows[rows], group.columns[rows, places] - kept] = True
            self.padding = self.padding - _places(~text, kept)
        self.groups, self.seen = groups, kept
        if kept == 0:
            self.positions = "either"
            if not any(isinstance(x, Tensor) for group in groups for x in tree_leaves(group.context.state)):
                self.reset()  # it knows nothing, as at first

    # Padding

    def check_earlier(self, mask: Bool[Tensor, "B seen"] | None) -> None:
        """Raises UserError if a mask of earlier columns is not the one that they were read with; None: all are text."""
        if mask is None and self.padding is None:
            return
        now = 0 if mask is None else _places(~mask, 0)
        before = 0 if self.padding is None else self.padding.to(mask.device if mask is not None else "cpu")
        if bool(torch.as_tensor(now != before).any()):
            raise UserError(
                "attention_mask says of earlier tokens that they are padding where they were read, or text where they "
                "were not, and what was read cannot be taken back (generate reads padding after a text that has ended)"
            )

    def read_before(self, device: torch.device) -> Int[Tensor, " B"]:
        """Tokens of each text so far."""
        read = torch.empty(self.batch_size, dtype=torch.long, device=device)
        for group in self.groups:
            read[group.rows.to(device)] = group.read
        return read

    def lead_with(self, text: Bool[Tensor, "B T"] | None, tokens: Tensor) -> Int[Tensor, " B"]:
        """Columns before the first token of each text, if these tokens [B, T, …] come next."""
        first = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
        if text is not None:
            first = torch.where(text.any(1), text.int().argmax(1), tokens.shape[1])
        if self.lead is None:
            return first
        return torch.where(self.read_before(tokens.device) == 0, self.seen + first, self.lead)

    def move_on(self, text: Bool[Tensor, "B T"] | None, tokens: Tensor, groups: list[Group]) -> None:
        """After these tokens [B, T, …] were read."""
        if text is not None:
            places = _places(~text, self.seen)
            self.padding = places if self.padding is None else self.padding + places
        if self.lead is None or any(group.read == 0 for group in self.groups):
            self.lead = self.lead_with(text, tokens)
        self.groups, self.seen, self.origin = groups, self.seen + tokens.shape[1], None

    # Rows

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
                chosen.append(select_rows(group, sources)._replace(rows=rows))
        self.groups = chosen
        self.padding, self.lead = (None if x is None else x[indices.to(x.device)] for x in (self.padding, self.lead))


def _places(padding: Bool[Tensor, "B T"], begin: int) -> Int[Tensor, " B"]:
    """A number that says where padding stands in each row of these columns: a sum, so that calls add up."""
    column = torch.arange(begin + 1, begin + padding.shape[1] + 1, device=padding.device)
    mixed = column * 6364136223846793005  # of 64 bits, the rest runs over
    mixed = (mixed ^ (mixed >> 29)) * -4658895280553007687
    return (padding * (mixed ^ (mixed >> 32))).sum(1)


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
