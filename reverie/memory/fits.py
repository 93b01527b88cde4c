"""Checks that a memory fits a model: whose it is, its settings and shapes of tensors, before tensors are read.

The model's states after one token and after two show each tensor's shape, and along which dimension a cache grows.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from reverie.errors import UserError
from reverie.memory.file import Header, described
from reverie.memory.fingerprint import Identity
from reverie.model import SleepingModel, State
from reverie.sleep import Context, SleepConfig, wake

_FLOATS = {"F16", "BF16", "F32", "F64"}
MOST_HISTORY_BYTES = 2**26


_UNROUNDED = {"bfloat16", "float32", "float64", "bool", "int64"}

_DIFFER = {
    "adapters": "the adapters {}, and the model now computes with {}",
    "dtype": "weights in {}, and those of the model are in {}",
    "kernels": "the kernels {}, and the model computes with {}",
}


def check_identity(made: Identity, now: Identity, subject: str, *, approximate: bool = False) -> str | None:
    """Check that a memory is of the model as it is now; raises UserError if not.

    Args:
        made: what the memory belongs to; files of earlier versions do not say what it was made with.
        subject: how sentences begin, such as "the memory is".
        approximate: the same model may compute in other numbers: another dtype, quantised, or other kernels.

    Returns what differs in words if that was accepted, else None.
    """
    if made == now:
        return None
    old, new, same_weights = dict(made.made_with), now.made_with, made.fingerprint == now.fingerprint
    differ = {key for key in old if old[key] != new.get(key)}
    numbers = differ & {"dtype", "kernels"}
    parts = set() if not old or "libraries" in differ else differ & {"modules", "buffers"}
    # In other dtypes than these, "rounded" is another digest of the same weights.
    comparable = bool(old) and ("dtype" not in differ or _UNROUNDED.issuperset(_dtypes(old) + _dtypes(new)))
    others = comparable and not same_weights and "rounded" in differ
    if "adapters" in differ or (numbers and not approximate and not others):
        key = next(key for key in _DIFFER if key in differ)
        told = _DIFFER[key].format(*(part[key] or "none" for part in (old, new)))
        hint = "" if key == "adapters" else "; approximate=True accepts it where it is loaded"
        raise UserError(f"{subject} of the model as it was with {told}{hint}")
    if others or (not same_weights and not approximate):
        raise UserError(f"{subject} of another model: its fast weights mean nothing to this one")
    if "dtype" in differ:  # which rounds buffers, and may quantise modules
        parts = parts & {"modules"} if comparable else set()
    if parts:
        told = " and ".join(sorted(parts, reverse=True))
        raise UserError(f"{subject} of a model with the same weights, but other {told}: it computes something else")
    if same_weights and not numbers:
        return None
    was, now_is = (f"{part.get('dtype', 'unknown')} and {part.get('kernels') or 'our kernels'}" for part in (old, new))
    on_word = "" if comparable else ", on the word of whoever loaded it"
    return f"made with {was}, accepted with {now_is}{on_word}"


def _dtypes(made_with: Mapping[str, str]) -> list[str]:
    return made_with["dtype"].split(", ")


def check_settings(made: SleepConfig, wanted: SleepConfig, where: str, num_blocks: int) -> None:
    """Check that a memory has the windows, eviction and loop that a model sleeps with; raises UserError if not.

    The number of passes and the tolerance may differ, since every window is consolidated by itself.
    """
    all_blocks, one_pass = (0, num_blocks), min(made.num_sleep_passes, wanted.num_sleep_passes) == 1
    names = ("window_size", "looped_blocks", "eviction", *(() if one_pass else ("bidirectional_sleep",)))
    for name in names:
        ours, theirs = (getattr(config, name) for config in (wanted, made))
        if name == "looped_blocks":
            ours, theirs = list(ours or all_blocks), list(theirs or all_blocks)
        if ours != theirs:
            raise UserError(
                f"{where} was made with {name} {theirs}, and the model sleeps with {ours}: "
                "it cannot go on with that memory"
            )


def check_fits(header: Header, model: SleepingModel, device: torch.device, where: str) -> None:
    """Check that a memory's tensors are those that this model's state has; raises UserError if not."""
    (ours, one), (_, two) = (described(_after(model, tokens, device)) for tokens in (1, 2))
    parts, info = header.content.parts, header.info
    if len(parts) != len(ours):
        raise UserError(f"{where} does not fit this model, which has {len(ours)} blocks")
    begun = any(part.fast_weights for part in parts) or any(info.tokens)
    absent = set() if begun else {name for name in one if name.startswith("fast_weights.")}
    for i, (part, own) in enumerate(zip(parts, ours, strict=True)):
        if begun and part.fast_weights != own.fast_weights:
            raise UserError(f"{where} does not fit this model: other blocks have fast weights")
        if part.cache is None:
            absent |= {name for name in one if name.startswith(f"cache.{i}.")}
        elif part.cache != own.cache or not _alike(part.fields, own.fields):
            raise UserError(f"{where} does not fit this model: it kept other things of its newest tokens")
    wanted, rows, kept = one.keys() - absent, len(info.tokens), info.config.window_size - 1
    found = {name: entry for name, entry in header.tensors.items() if not name.startswith("history.")}
    for name, (shape, dtype) in found.items():
        if name not in wanted or dtype not in _FLOATS or not _is_shape(shape, rows, one[name], two[name], kept):
            raise UserError(
                f"{where} does not fit this model: its tensor {name[:40]!r} is none that a memory of it has"
            )
    if lacking := wanted - found.keys():
        raise UserError(f"{where} is not a memory: it lacks the tensor {min(lacking)}")
    if header.history_bytes > MOST_HISTORY_BYTES:
        raise UserError(f"{where} is not a memory: its history has {header.history_bytes:,} bytes")


def as_of(model: SleepingModel, state: State, device: torch.device, *, fast_weights: bool) -> State:
    """A state whose cache has the dtypes that this model computes in, and its fast weights too if that is asked for.

    Fast weights may be kept in any: they are read in float32.
    """
    _, own = described(_after(model, 1, device))
    _, given = described(state)
    dtypes = {id(x): own[name].dtype for name, x in given.items() if fast_weights or name.startswith("cache.")}
    return tree_map_only(Tensor, lambda x: x.to(dtypes.get(id(x), x.dtype)), state)


def _after(model: SleepingModel, tokens: int, device: torch.device) -> State:
    """The model's state after so many tokens."""
    with torch.no_grad():
        ids = torch.zeros(1, tokens, dtype=torch.long, device=device)
        return wake(model, ids, Context.empty(model), SleepConfig(window_size=tokens))[1].state


def _is_shape(shape: tuple[int, ...], rows: int, one: Tensor, two: Tensor, most: int) -> bool:
    """True for the shape of a tensor with so many rows that is `one` after one token and `two` after two.

    Where these differ in size, it may have at most `most`.
    """
    sizes = zip(shape[1:], one.shape[1:], two.shape[1:], strict=False)
    fits = (size <= most if a != b else size == a for size, a, b in sizes)
    return len(shape) == one.ndim and shape[0] == rows and all(fits)


def _alike(found: Any, own: Any) -> bool:
    """True if two descriptions of a cache differ in counts of tokens alone, which are integers from 0."""
    if type(found) is not type(own):
        return False
    if isinstance(own, dict):
        return found.keys() == own.keys() and all(_alike(found[key], own[key]) for key in own)
    if isinstance(own, list):
        return len(found) == len(own) and all(map(_alike, found, own))
    return found >= 0 if type(own) is int else found == own


def token_ids(text: Any, row: int) -> Tensor:
    """Token ids of a text as int64 [T]. Raises UserError for anything else."""
    ids = torch.as_tensor(text)
    if ids.ndim != 1 or ids.is_floating_point() or ids.is_complex():
        raise UserError(
            f"text {row} of the batch must be token ids in one dimension, got {list(ids.shape)} of {ids.dtype}; "
            "tokens are [B, T], or a list of texts"
        )
    if len(ids) == 0:
        raise UserError(f"text {row} of the batch is empty: there is nothing to sleep over")
    return ids.long()
