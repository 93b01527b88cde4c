"""Checks that a memory fits a model: its settings and shapes of tensors, from the header, before tensors are read.

The model's states after one token and after two show each tensor's shape, and along which dimension a cache grows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from reverie.errors import UserError
from reverie.memory.file import Header, Part
from reverie.model import SleepingModel, State
from reverie.sleep import Context, SleepConfig, wake

_FLOATS = {"F16", "BF16", "F32", "F64"}
MOST_HISTORY_BYTES = 2**26


def check_settings(made: SleepConfig, wanted: SleepConfig, where: str, num_blocks: int) -> None:
    """Check that a memory has the windows, eviction and loop that a model sleeps with; raises UserError if not.

    The number of passes and the tolerance may differ, since every window is consolidated by itself.
    """
    all_blocks = (0, num_blocks)
    for name in ("window_size", "looped_blocks", "eviction"):
        ours, theirs = (getattr(config, name) for config in (wanted, made))
        if name == "looped_blocks":
            ours, theirs = ours or all_blocks, theirs or all_blocks
        if ours != theirs:
            raise UserError(
                f"{where} was made with {name} {_shown(theirs)}, and the model sleeps with {_shown(ours)}: "
                "it cannot go on with that memory"
            )


def check_fits(header: Header, model: SleepingModel, device: torch.device, where: str) -> None:
    """Check that a memory's tensors are those that this model's state has; raises UserError if not."""
    one, two = (_after(model, tokens, device) for tokens in (1, 2))
    parts, info, allowed = header.content.parts, header.info, dict[str, list[int | None]]()
    if len(parts) != len(one.cache):
        raise UserError(f"{where} does not fit this model, which has {len(one.cache)} blocks")
    held = [part.fast_weights for part in parts]
    if any(held) or any(info.tokens):
        if held != [x is not None for x in one.fast_weights]:
            raise UserError(f"{where} does not fit this model: other blocks have fast weights")
        allowed |= {f"fast_weights.{i}": [*x.shape] for i, x in enumerate(one.fast_weights) if x is not None}
    for i, part in enumerate(parts):
        if part.cache is not None:
            allowed |= _cache_shapes(part, (one.cache[i], two.cache[i]), f"cache.{i}", where)
    kept = info.config.window_size - 1
    for name, (shape, dtype) in header.tensors.items():
        if name.startswith("history."):
            continue
        sizes, rows = allowed.pop(name, None), len(info.tokens)
        if sizes is None or dtype not in _FLOATS or not _is_shape(shape, [rows, *sizes[1:]], kept):
            raise UserError(
                f"{where} does not fit this model: its tensor {name[:40]!r} is none that a memory of it has"
            )
    if allowed:
        raise UserError(f"{where} is not a memory: it lacks the tensor {min(allowed)}")
    if header.history_bytes > MOST_HISTORY_BYTES:
        raise UserError(f"{where} is not a memory: its history has {header.history_bytes:,} bytes")


def _after(model: SleepingModel, tokens: int, device: torch.device) -> State:
    """The model's state after so many tokens."""
    with torch.no_grad():
        ids = torch.zeros(1, tokens, dtype=torch.long, device=device)
        return wake(model, ids, Context.empty(model), SleepConfig(window_size=tokens))[1].state


def _is_shape(shape: tuple[int, ...], wanted: list[int | None], most: int) -> bool:
    """True if `shape` is as wanted, where None stands for a size of at most `most`."""
    fits = (size <= most if other is None else size == other for size, other in zip(shape, wanted, strict=False))
    return len(shape) == len(wanted) and all(fits)


def _cache_shapes(part: Part, entries: tuple[Any, Any], name: str, where: str) -> dict[str, list[int | None]]:
    """Shapes of a cache's tensors by name, from its entries after one and two tokens; None where they differ."""
    one, two = entries
    described = {path: value for path, value in _leaves(part.fields, name)}
    own = dict(_leaves(one, name)) if one is not None else {}
    if part.cache != type(one).__name__ or described.keys() != own.keys():
        raise UserError(f"{where} does not fit this model: it kept other things of its newest tokens")
    shapes = dict[str, list[int | None]]()
    for (path, x), (_, y) in zip(_leaves(one, name), _leaves(two, name), strict=True):
        value = described[path]
        if isinstance(x, Tensor):
            if value != {"tensor": path}:
                raise UserError(f"{where} does not fit this model: {path} must be a tensor")
            shapes[path] = [a if a == b else None for a, b in zip(x.shape, y.shape, strict=True)]
        elif type(value) is not type(x) or (isinstance(x, float) and value != x) or (type(x) is int and value < 0):
            raise UserError(f"{where} does not fit this model: {path} is {value!r:.40} there")
    return shapes


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a named tuple, or of its description, with their paths."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, dict) and value.keys() != {"tensor"}:
        pairs = value.items()
    elif isinstance(value, tuple | list):
        pairs = enumerate(value)
    else:
        yield name, value
        return
    for key, part in pairs:
        yield from _leaves(part, f"{name}.{key}")


def _shown(value: object) -> str:
    return str(list(value) if isinstance(value, tuple) else value)
