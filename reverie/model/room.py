"""Room after the end of a cached tensor, so that a token awake is written and nothing is copied.

Values never change: a tensor that was handed out is a view of the places up to its end, and only places after all of
these are written. Whoever goes on from an older tensor, as branches of a memory do, finds the next place taken and
gets a buffer of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST = 64  # places in a buffer
_SMALL = 2**19  # bytes that are copied sooner than a place in a buffer is found


class Room:
    """Buffers of one size that begin with these tensors, and are filled together."""

    def __init__(self, begins: Sequence[Tensor], dim: int, places: int) -> None:
        self.dim, self.places = dim, places
        self._end = [begins[0].shape[dim]]  # the first free place; nothing while somebody takes it
        with torch.inference_mode(False):  # what inference mode makes, others could not write
            self._kept = [x.new_zeros(_resized(x, dim, places)) for x in begins]  # what is masked must be numbers, too
        self.buffers = [x.data for x in self._kept]  # writing counts as no change of tensors that autograd has kept
        for buffer, begin in zip(self.buffers, begins, strict=True):
            buffer.narrow(dim, 0, begin.shape[dim]).copy_(begin)

    def take(self, place: int, size: int) -> bool:
        """True if the next places are free and begin here: they are the caller's now."""
        try:
            end = self._end.pop()  # by one thread alone
        except IndexError:
            return False
        free = end == place and place + size <= self.places
        self._end.append(end + size if free else end)
        return free

    def up_to(self, end: int) -> list[Tensor]:
        """Everything before a place, from which somebody may go on."""
        views = [x.narrow(self.dim, 0, end) for x in self._kept]
        for i, view in enumerate(views):
            view.in_room = self, i  # pyright: ignore[reportAttributeAccessIssue]
        return views

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # copies of a tensor, and files, have no room


def _resized(x: Tensor, dim: int, size: int) -> list[int]:
    return [*x.shape[:dim], size, *x.shape[dim + 1 :]]


def _room_of(tensors: Sequence[Tensor]) -> Room | None:
    """The room whose views these are, all of them and in order."""
    room, _ = getattr(tensors[0], "in_room", None) or (None, 0)
    if room is None or len(room.buffers) != len(tensors):
        return None
    return room if all(getattr(x, "in_room", None) == (room, i) for i, x in enumerate(tensors)) else None


def append(before: Tensor, new: Tensor, dim: int, window: int) -> Tensor:
    """`torch.cat([before, new], dim)`; of large tensors without gradients in place, where nobody has gone on from
    `before` yet.

    It has the type of `new`: what was cached may come from a memory in another one.

    Args:
        window: tokens that a cache holds under hard eviction, at most; under sliding eviction twice as many.
    """
    before = before if before.dtype == new.dtype else before.to(new.dtype)
    if before.nbytes < _SMALL or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.cat([before, new], dim)
    n, size = before.shape[dim], new.shape[dim]
    if _resized(before, dim, 0) != _resized(new, dim, 0):
        return torch.cat([before, new], dim)
    room = _room_of([before])
    if room is None or not room.take(n, size):
        most = window if n + size <= window else 2 * window
        room = Room([before], dim, max(n + size, min(max(2 * (n + size), _LEAST), most)))
        room.take(n, size)
    room.buffers[0].narrow(dim, n, size).copy_(new)
    return room.up_to(n + size)[0]


def room_after(before: Sequence[Tensor], dim: int, most: int) -> Room:
    """A room of `places_after` tensors that are equally long; the place after them is the caller's to write."""
    room, n = _room_of(before), before[0].shape[dim]
    places = places_after(n, most)
    if room is None or room.places != places or not room.take(n, 1):
        room = Room(before, dim, places)
        room.take(n, 1)
    return room


def places_after(n: int, most: int) -> int:
    """Places in a room of n tensors and at least one more: few, since all of them are attended to."""
    return min(_LEAST * (n // _LEAST + 1), most)
