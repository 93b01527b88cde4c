"""`Context`: what a model knows between two calls; and its rows, which may go different ways for a while."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils._pytree import tree_map

from reverie.errors import UserError
from reverie.model import SleepingModel, State, Tokens, select_rows

Tree = TypeVar("Tree", bound=tuple[Any, ...])


class Beside(NamedTuple):
    """What the passes of sleep read beside h [B, T, D]; None what the model does not ask for."""

    embedded: Tensor | None = None  # the window's tokens
    entered: Tensor | None = None  # what entered the first looped block in pass 1


class Context(NamedTuple):
    """What a model knows between two calls."""

    state: State  # after the newest token
    window_start: State  # as this window found it
    window: tuple[Tensor, ...] = ()  # h [B, T, D] after the looped blocks, pass 1, for this window's tokens
    length: int = 0  # tokens in this window
    passes: int | Int[Tensor, " B"] = 0  # spent on all windows slept over; by row where rows differ
    embedded: tuple[Tensor, ...] = ()  # this window's tokens [B, T, D] as embedded, for a model whose blocks read them
    entered: tuple[Tensor, ...] = ()  # what entered the first looped block in pass 1, for a model that injects it

    @classmethod
    def empty(cls, model: SleepingModel) -> Context:
        state = State.empty(model.num_blocks)
        return cls(state, state)

    def __repr__(self) -> str:
        """One line, such as "Context(5 tokens awake, 3+6 passes, State(…))"."""
        return f"Context({self.length:,} tokens awake, {passes_in_words(self.passes)}, {self.state})"

    def with_first_pass(self, looped: Tensor, beside: Beside) -> Context:
        """After pass 1 over more tokens of the window: what the other passes will read."""
        embedded, entered = (() if x is None else (x,) for x in beside)
        return self._replace(
            window=(*self.window, looped), embedded=(*self.embedded, *embedded), entered=(*self.entered, *entered)
        )

    @property
    def beside(self) -> Beside:
        """What the passes over this window read beside h."""
        return Beside(*(torch.cat(kept, dim=1) if kept else None for kept in (self.embedded, self.entered)))

    def windows(self, tokens: Tokens, window_size: int) -> list[Tokens]:
        """Tokens that come next, window by window: the first of them go on in this one, unless it is full.

        Raises:
            UserError: there are none.
        """
        if tokens.shape[1] == 0:
            raise UserError("there is nothing to read: tokens must hold at least one, got T = 0")
        first = window_size - self.length % window_size
        rest = tokens[:, first:]
        return [tokens[:, :first], *(rest.split(window_size, dim=1) if rest.shape[1] else ())]


OnWindow = Callable[[int, Context], None]
"""Called with the number of windows slept over so far, and the context."""


def summed(counts: int | Int[Tensor, " B"]) -> str:
    """Counts by row of a batch as a sum, such as "16+32"; of many rows what it comes to."""
    rows = [counts] if isinstance(counts, int) else torch.as_tensor(counts).flatten().tolist()
    return "+".join(f"{row:,}" for row in (rows if len(rows) <= 4 else [sum(rows)]))


def passes_in_words(passes: int | Int[Tensor, " B"]) -> str:
    """Such as "3 passes each", where rows have spent the same, or "3+6 passes"."""
    if isinstance(passes, Tensor) and passes.numel() > 1 and bool((passes == passes[0]).all()):
        return f"{summed(passes[0])} passes each"
    return f"{summed(passes)} passes"


def by_kind(
    kinds: Int[Tensor, " B"], tokens: Tokens, context: Context, through: Callable[[int, Tokens, Context], Tree]
) -> Tree:
    """What `through` gives for all rows, after those of each kind went through a window by themselves.

    If all rows are of one kind, they are run as they are.

    Args:
        kinds: on the CPU.
        tokens: of the window.
        context: before them; if rows differ, no window is open.
        through: given a kind, and the tokens and the context of the rows that are of it.
    """
    found = kinds.unique().tolist()
    if len(found) == 1:
        return through(found[0], tokens, context)
    context = context._replace(passes=torch.as_tensor(context.passes, device=tokens.device).expand(len(kinds)))
    rows = [(kinds == kind).nonzero()[:, 0].to(tokens.device) for kind in found]
    return in_order(
        [through(kind, *select_rows((tokens, context), own)) for kind, own in zip(found, rows, strict=True)], rows
    )


def in_order(parts: Sequence[Tree], rows: Sequence[Tensor]) -> Tree:
    """Parts of a batch as one again; `rows` says which rows of it each part has."""
    order = torch.cat(list(rows)).argsort()
    return tree_map(lambda *xs: torch.cat(xs)[order] if isinstance(xs[0], Tensor) else xs[0], *parts)


def put_rows(tree: Tree, part: Tree, rows: Int[Tensor, " rows"]) -> Tree:
    """`tree` with these rows taken from `part`."""
    return tree_map(lambda x, new: x.index_copy(0, rows, new) if isinstance(x, Tensor) else x, tree, part)
