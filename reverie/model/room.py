"""Room after the end of a cached tensor, so that a token awake is written and nothing is copied.

Values never change: a tensor that was handed out is a view of the places up to its end, and only places after all of
these are written. Whoever goes on from an older tensor, as branches of a memory do, finds the next place taken and
gets a buffer of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_LEAST = 64  # places in a buffer


class Room:
    """A buffer that begins with a tensor."""

    def __init__(self, begin: Tensor, dim: int, places: int) -> None:
        self.dim, self._end = dim, [begin.shape[dim]]  # the first free place; nothing while somebody takes it
        shape = [*begin.shape]
        shape[dim] = places
        with torch.inference_mode(False):  # what inference mode makes, others could not write
            self.buffer = begin.new_zeros(shape)  # what is masked must be numbers, too
        self._raw = self.buffer.data  # writing counts as no change of tensors that autograd has kept
        self._raw.narrow(dim, 0, begin.shape[dim]).copy_(begin)

    def take(self, place: int, size: int) -> bool:
        """True if the next places are free and begin here: they are the caller's now."""
        try:
            end = self._end.pop()  # by one thread alone
        except IndexError:
            return False
        free = end == place and place + size <= self.buffer.shape[self.dim]
        self._end.append(end + size if free else end)
        return free

    def write(self, place: int, new: Tensor) -> None:
        """Put `new` into places that were taken."""
        self._raw.narrow(self.dim, place, new.shape[self.dim]).copy_(new)

    def up_to(self, end: int) -> Tensor:
        """Everything before a place, from which somebody may go on."""
        view = self.buffer.narrow(self.dim, 0, end)
        _rooms[view] = self
        return view


_rooms = WeakTensorKeyDictionary()  # of tensors that were handed out; one that is not here is copied once


def append(before: Tensor, new: Tensor, dim: int, window: int) -> Tensor:
    """`torch.cat([before, new], dim)`; without gradients in place, where nobody has gone on from `before` yet.

    It has the type of `new`: what was cached may come from a memory in another one.

    Args:
        window: tokens that a cache holds under hard eviction, at most; under sliding eviction twice as many.
    """
    n, size = before.shape[dim], new.shape[dim]
    alike = before.dtype == new.dtype and before.narrow(dim, 0, 0).shape == new.narrow(dim, 0, 0).shape
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not alike:
        return torch.cat([before.to(new.dtype), new], dim)
    room: Room | None = _rooms.get(before)
    if room is None or not room.take(n, size):
        most = window if n + size <= window else 2 * window
        room = Room(before, dim, max(n + size, min(max(2 * (n + size), _LEAST), most)))
        room.take(n, size)
    room.write(n, new)
    return room.up_to(n + size)


def room_after(before: Tensor, dim: int, places: int) -> Room:
    """A room of so many places that begins with `before`; the place after it is the caller's to write."""
    room: Room | None = _rooms.get(before)
    n = before.shape[dim]
    if room is None or room.buffer.shape[dim] != places or not room.take(n, 1):
        room = Room(before, dim, places)
        room.take(n, 1)
    return room
