"""`Group`: rows of a batch that have read alike, what they know, and what it takes to untake their newest tokens.

Fast weights cannot be wound back by a token. So a group keeps some earlier contexts, and the tokens read since the
oldest of them. It goes back to the newest context from before the tokens that are taken back, and reads those in
between again when others come.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from reverie.errors import UserError
from reverie.model import select_rows
from reverie.model.room import append
from reverie.sleep import Context
from reverie.sleep.context import OnWindow

LEAST = 64  # tokens that can be taken back in any case
WHOLE = 1024  # tokens of a call that can be taken back as a whole, at most, such as those that an assistant guesses
FEW = 16  # tokens that are read again together with new ones, at most


class Read(Protocol):
    """`reverie.sleep.read` of some model, which sleeps in some way."""

    def __call__(self, tokens: Tensor, context: Context, *, on_window: OnWindow) -> tuple[Tensor, Context]: ...


class Point(NamedTuple):
    """A context that can be gone back to."""

    read: int  # tokens of each text by then
    context: Context


class Group(NamedTuple):
    """Rows of a batch that have read equally many tokens, and always together."""

    rows: Int[Tensor, " rows"]
    read: int  # tokens of each text so far
    context: Context
    unread: int = 0  # the newest of these tokens, which the context has not read: others after them were taken back
    starts: tuple[Point, ...] = ()  # of windows
    call: Point | None = None  # before the newest call, if that was of several tokens and not of too many
    tokens: Tensor | None = None  # since the oldest of these: [rows, n], or [rows, n, D] embedded
    columns: Int[Tensor, "rows n"] | None = None  # of the batch, where these tokens stood
    since: Int[Tensor, " rows"] | None = None  # where the oldest of them stood, also when all were taken back

    @property
    def now(self) -> Point:
        return Point(self.read - self.unread, self.context)

    def read_on(
        self, new: Tensor, columns: Int[Tensor, "rows n"], window_size: int, read: Read
    ) -> tuple[Tensor, Group]:
        """Read the next tokens [rows, n, …] of each text: what `read` gives for them, and the group after them.

        Args:
            read: what reads them.
        """
        starts = deque(self.starts or [self.now], maxlen=2 + -(-LEAST // window_size))

        def through(tokens: Tensor, point: Point) -> tuple[Tensor, Point]:
            first = point.read - point.context.length % window_size

            def slept(windows: int, context: Context) -> None:
                starts.append(Point(first + windows * window_size, context))

            y, context = read(tokens, point.context, on_window=slept)
            after = Point(point.read + tokens.shape[1], context)
            start = Context(context.window_start, context.window_start, passes=context.passes)
            if after.read - context.length > starts[-1].read:
                starts.append(Point(after.read - context.length, start))
            return y, after

        begin, alike = self.now, self.tokens is not None and self.tokens.ndim == new.ndim
        given = new
        if self.tokens is not None and self.unread:
            again = self.tokens[:, -self.unread :]
            if self.unread <= FEW and alike and again.dtype == new.dtype:
                given = torch.cat([again, new], dim=1)
            else:
                _, begin = through(again, begin)
        if not alike:
            starts = deque([begin], maxlen=starts.maxlen)
        y, (read_now, context) = through(given, begin)
        while len(starts) > 1 and starts[1].read <= read_now - LEAST:
            starts.popleft()
        call = begin if 1 < new.shape[1] <= WHOLE else None
        kept = read_now - min(starts[0].read, read_now if call is None else call.read)
        tokens, where = (
            _newest(before if alike else None, x, kept, window_size)
            for before, x in ((self.tokens, new), (self.columns, columns))
        )
        after = Group(self.rows, read_now, context, 0, tuple(starts), call, tokens, where, where[:, 0])
        return y[:, -new.shape[1] :], after

    def back_to(self, column: int) -> list[Group]:
        """Its rows without what stood in this column of the batch and after it; by how many tokens these were.

        Raises UserError if a token before those that it has kept may be among them.
        """
        if self.tokens is None or self.columns is None or self.since is None:
            gone, beyond = torch.zeros_like(self.rows), self.read > 0
        else:
            gone, older = (self.columns >= column).sum(1), self.read > self.tokens.shape[1]
            beyond = older and bool((self.since > column).any())
        if beyond:
            kept = 0 if self.tokens is None else self.tokens.shape[1]
            raise UserError(
                f"of {self.read:,} tokens read the newest {kept:,} can be taken back, and not more: copy a cache "
                "before what may have to be taken back, or begin a new one"
            )
        parts = [(n, (gone == n).nonzero()[:, 0]) for n in gone.unique().tolist()]
        return [(self if len(parts) == 1 else select_rows(self, own))._without(n) for n, own in parts]

    def _without(self, n: int) -> Group:
        """Without the newest n tokens, which it has kept."""
        if n == 0 or self.tokens is None or self.columns is None:
            return self
        read, left = self.read - n, self.tokens.shape[1] - n
        call = self.call if self.call is not None and self.call.read <= read else None
        starts = tuple(start for start in self.starts if start.read <= read)
        points = [*starts, *([call] if call else []), *([self.now] if self.now.read <= read else [])]
        back = max(points, key=lambda point: point.read)
        return self._replace(
            read=read,
            context=back.context,
            unread=read - back.read,
            starts=starts,
            call=call,
            tokens=self.tokens[:, :left],
            columns=self.columns[:, :left],
        )


def _newest(before: Tensor | None, new: Tensor, n: int, window_size: int) -> Tensor:
    """The newest n of all, in a tensor that keeps no others in memory."""
    if before is None or n <= new.shape[1]:
        return new[:, -n:].clone()
    both = append(before, new, 1, window_size + LEAST)
    return both if both.shape[1] == n else both[:, -n:].clone()
