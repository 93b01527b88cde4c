"""Whether anything in a model is another than when it was last looked at.

A `Look` notices what Python and torch can see, in well under a millisecond: another tensor, storage, version, module,
hook, setting or adapter, anywhere in the model. What is written past them, through `parameter.data` or numpy, shows in
`checksum` alone, which reads every byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# Of torch.nn.Module; hooks on calls are in _forward_hooks and _forward_pre_hooks.
_UNWATCHED = vars(nn.Module()).keys() - {"_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks"}
_storage_id: Any = torch._C._storage_id  # pyright: ignore[reportAttributeAccessIssue]
_PROPERTIES = attrgetter("_version"), _storage_id, Tensor.data_ptr, attrgetter("shape"), Tensor.stride
_ROWS, _COLUMNS = 64, 2048  # of numbers of 8 bytes that are summed at once: 1 MB stays in a core's cache


class Look:
    """What a module holds: the values in all its parts' attributes, and the storage and version of each tensor."""

    def __init__(self, module: nn.Module) -> None:
        self._held: list[Collection[Any]] = []
        self._values: list[Any] = []  # of all that is held, one after the other
        self._empty: list[Collection[Any]] = []
        found: dict[int, Tensor] = {}
        self._hold(vars(module), found, set())
        self._lengths = list(map(len, self._held))
        self.tensors = list(found.values())
        # While a weak reference lives, no other storage gets the same id; it keeps no weights alive.
        self.storages = [StorageWeakRef(x.untyped_storage()) for x in plain_tensors(self.tensors)]
        self.marks = self._marks()
        plain = [type(x) in (Tensor, nn.Parameter) and not (x.is_meta or x.is_inference()) for x in self.tensors]
        self._quick = all(plain)  # to look at, and so a list for each property
        self._properties = self._properties_now() if self._quick else []

    def holds(self) -> bool:
        """True if everything is as it was, as far as it can be seen."""
        if not self.parts_hold():
            return False
        if not self._quick:
            return self._marks() == self.marks
        return self._properties_now() == self._properties

    def _properties_now(self) -> list[list[Any]]:
        return [[*map(read, self.tensors)] for read in _PROPERTIES]

    def parts_hold(self) -> bool:
        """True if the attributes of all parts are the objects that they were, whatever is in their tensors."""
        try:
            return (
                not any(self._empty)
                and list(map(len, self._held)) == self._lengths
                and all(map(is_, chain.from_iterable(self._held), self._values))
            )
        except RuntimeError:  # another thread has changed a dict while it was read
            return False

    def _marks(self) -> list[tuple[object, ...]]:
        return [_mark(x) for x in plain_tensors(self.tensors)]

    def _hold(self, held: dict[str, Any] | list[Any] | set[Any], tensors: dict[int, Tensor], seen: set[int]) -> None:
        if id(held) in seen:
            return
        seen.add(id(held))
        of_module = isinstance(held, dict) and "_parameters" in held
        values = held.values() if isinstance(held, dict) else held
        if held:
            self._held.append(values)
            self._values.extend(values)
        else:
            self._empty.append(held)
        for key, value in held.items() if isinstance(held, dict) else enumerate(held):
            if of_module and key in _UNWATCHED:
                continue
            if isinstance(value, Tensor):
                tensors[id(value)] = value
            elif isinstance(value, nn.Module) or (key == "config" and hasattr(value, "to_dict")):
                self._hold(vars(value), tensors, seen)
            elif isinstance(value, dict | list | set):
                self._hold(value, tensors, seen)


def plain_tensors(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Each tensor, or in the place of one of a subclass, such as a quantised or sharded one, those it is made of."""
    for x in tensors:
        if type(x) in (Tensor, nn.Parameter) or not is_traceable_wrapper_subclass(x):
            yield x
        else:
            yield from plain_tensors(getattr(x, name) for name in x.__tensor_flatten__()[0])


def checksum(tensors: Iterable[Tensor]) -> bytes:
    """A digest of tensors that is computed as fast as memory is read, some seven times as fast as SHA-256.

    The sums of rows and of columns of each tensor's bytes, as blocks of 64 by 2,048 integers: a change of one element,
    and an exchange of two, changes some of them. It is proof against edits, not against forgery.
    """
    digest = hashlib.sha256()
    for x in plain_tensors(tensors):
        digest.update(f"{x.dtype} {tuple(x.shape)} ".encode())
        if x.is_meta:
            continue
        data = bytes_of(x)
        whole = len(data) // (8 * _ROWS * _COLUMNS) * (8 * _ROWS * _COLUMNS)
        rest = data[whole:]
        digest.update((rest if len(rest) <= 2**14 else _sums(_padded(rest))).cpu().numpy().data)
        for block in (
            data[:whole].view(torch.int64).view(-1, _ROWS, _COLUMNS).split(1 if x.device.type == "cpu" else 512)
        ):
            digest.update(_sums(block).cpu().numpy().data)
    return digest.digest()


def bytes_of(x: Tensor) -> Tensor:
    """The elements of a tensor as uint8 [bytes], in order; a copy only if they are spread over its storage."""
    x = x.detach()
    x = x.int_repr() if x.is_quantized else x.resolve_conj().resolve_neg()
    data = x.contiguous().reshape(-1).view(torch.uint8)
    return data.clone() if data.data_ptr() % 8 else data


def _padded(data: Tensor) -> Tensor:
    rows = -(-len(data) // (8 * _ROWS))
    return nn.functional.pad(data, (0, rows * 8 * _ROWS - len(data))).view(torch.int64).view(1, _ROWS, rows)


def _sums(blocks: Tensor) -> Tensor:
    return torch.cat([blocks.sum(1).reshape(-1), blocks.sum(2).reshape(-1)])


def _count_fused_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Count a step as the edit that it is: fused kernels write to parameters, but leave their versions as they were."""
    if torch.compiler.is_compiling():
        return
    fused = (group["params"] for group in optimizer.param_groups if group.get("fused"))
    increment_version(plain_tensors(x for params in fused for x in params if x.grad is not None))


register_optimizer_step_post_hook(_count_fused_step)


def _mark(x: Tensor) -> tuple[object, ...]:
    if x.is_meta:  # offloaded: such stand-ins are made anew at every call
        return (x.shape,)
    version = 0 if x.is_inference() else x._version
    return x.untyped_storage()._cdata, version, x.storage_offset(), x.shape, x.stride()
