"""What a memory belongs to: a model's weights and config by their SHA-256, and the function that it computes with them.

Both are found out once and kept on the module while nothing changes. `Mark` notices at every use what torch and Python
can see; `identify` reads every weight, and so notices what was written through `parameter.data` or numpy too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from reverie.errors import UserError
from reverie.memory.function import adapter_settings, function_of
from reverie.model import Injection
from reverie.model.changes import Look, bytes_of, checksum, plain_tensors

# Settings that configs did not have when the first memories were written, off as those models have them.
_ADDED = {"value_embedding": False, "mixers": {}, "injection": "none"}

# Keys of a config that transformers adds or drops from one save to the next, or that only decoding reads.
_VOLATILE = re.compile(r"_.*|.*_token_id|architectures|dtype|torch_dtype|transformers_version|use_cache")

_KNOWN = "_known_of_memories"  # the attribute of a module that keeps what was found out
_SAMPLE = 4096  # elements of a tensor that `rounded` looks at


class Identity(NamedTuple):
    """What a memory belongs to."""

    fingerprint: str  # SHA-256 of weights and config, and of how adapters are set where there are any
    made_with: Mapping[str, str]  # `function_of`, and "rounded": a digest of weights in bfloat16, and of the config


class Mark:
    """How a model was at one moment, as far as torch and Python can see; copied and pickled without the model."""

    def __init__(self, look: Look, config: str, function: Mapping[str, str]) -> None:
        self._tensors, self._storages, self._function = look.marks, look.storages, (config, function)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mark) or self is other:
            return self is other
        return (self._tensors, self._function) == (other._tensors, other._function)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __deepcopy__(self, memo: object) -> Mark:
        return self

    def __reduce__(self) -> Any:
        return type(None), ()  # in another process it would mean nothing


class _Seen(NamedTuple):
    look: Look
    config: str
    function: Mapping[str, str]
    mark: Mark


class _Hashed(NamedTuple):
    seen: _Seen
    checksum: bytes
    identity: Identity


class _Known:
    """What was found out about a module, which keeps it. Copies of the module begin with nothing."""

    seen: _Seen | None = None
    hashed: _Hashed | None = None

    def __reduce__(self) -> Any:
        return _Known, ()


def fingerprint(model: object, *, anew: bool = False) -> str:
    """Hex SHA-256 of weights and config; the same on any device, and whatever wraps the model.

    Args:
        model: a module, or an object that sleeps through one, as `module_of` finds it.
        anew: read all weights, since writing through `parameter.data` leaves no trace.

    Raises:
        UserError: the model has no weights, or not in memory.
    """
    module = module_of(model)
    known, seen = _look(module)
    if not anew and known.hashed is not None and known.hashed.seen is seen:
        return known.hashed.identity.fingerprint
    return identify(module).fingerprint


def identify(model: object) -> Identity:
    """What memories that this model makes now belong to. It reads all weights, and hashes them if one has changed."""
    module = module_of(model)
    known, seen = _look(module)
    before, now = known.hashed, checksum(seen.look.tensors)
    if before is not None and before.checksum == now and before.seen is seen:
        return before.identity
    if before is None or before.checksum != now or before.seen.config != seen.config:
        tensors = [x for x in tree_leaves(module.state_dict()) if isinstance(x, Tensor)]
        if any(x.is_meta for x in tensors):
            raise UserError("some weights of the model are not in memory, so it cannot be told which memories are its")
        hashed, rounded = content_hash(seen.config, [("", x) for x in tensors]), _rounded(seen.config, tensors)
        if before is not None and before.checksum != now:  # buffers may have been written to, without a trace
            seen = known.seen = seen._replace(function=function_of(module))
    else:
        hashed, rounded = before.identity.fingerprint, before.identity.made_with["rounded"]
    known.hashed = _Hashed(seen, now, Identity(hashed, {**seen.function, "rounded": rounded}))
    return known.hashed.identity


def mark_of(model: object) -> Mark:
    """How the model is now; equal to that of an earlier moment if nothing visible has changed since. Cheap."""
    return _look(module_of(model))[1].mark


def module_of(model: object) -> nn.Module:
    """The module with the weights: the model itself, or that of its `sleeping` part.

    Raises UserError if there is none.
    """
    if isinstance(part := getattr(model, "sleeping", None), nn.Module):
        return part
    if isinstance(model, nn.Module):
        return model
    for name in ("sleeping", "decoder"):
        if hasattr(model, name):
            return module_of(getattr(model, name))
    raise UserError(f"a {type(model).__name__} is no model: give one of reverie's or of transformers'")


def content_hash(text: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hex SHA-256 of a text and tensors, each with what it is called."""
    digest = hashlib.sha256(text.encode())
    for called, tensor in tensors:
        for x in plain_tensors([tensor]):
            digest.update(f"{called}{x.dtype} {tuple(x.shape)} ".encode())
            digest.update(bytes_of(x).cpu().numpy().data)
    return digest.hexdigest()


def _look(module: nn.Module) -> tuple[_Known, _Seen]:
    """What is known of the module, which is looked at again if anything visible has changed."""
    known: _Known = vars(module).setdefault(_KNOWN, _Known())
    if (seen := known.seen) is None or not seen.look.holds():
        look, function = Look(module), function_of(module)
        config = json.dumps(_config(module), sort_keys=True, default=str) + adapter_settings(module)
        seen = known.seen = _Seen(look, config, function, Mark(look, config, function))
    return known, seen


def _rounded(config: str, tensors: Iterable[Tensor]) -> str:
    """A digest of evenly spaced elements in bfloat16: the same if a model was converted to float32 or float64."""
    digest = hashlib.sha256(config.encode())
    for x in plain_tensors(tensors):
        count = min(x.numel(), _SAMPLE)
        places = torch.arange(count, device=x.device) * (x.numel() - 1) // max(count - 1, 1)
        sample = (x.int_repr() if x.is_quantized else x.detach()).reshape(-1)[places]
        sample = sample.float().bfloat16() if sample.is_floating_point() else sample
        digest.update(f"{tuple(x.shape)} ".encode())
        digest.update(bytes_of(sample).cpu().numpy().data)
    return digest.hexdigest()


def _config(module: nn.Module) -> dict[str, Any]:
    """Config of the module or the first one inside that has one, of reverie or transformers; {} without."""
    config = next((part.config for part in module.modules() if hasattr(part, "config")), None)
    # Which transformers' configs don't know, and which may have no weights.
    injections = [type(part).__qualname__ for part in module.modules() if isinstance(part, Injection)]
    added = {"injection": injections[0]} if injections else {}
    for name in ("model_dump", "to_dict"):
        if hasattr(config, name):
            content = (getattr(config, name)() | added).items()
            return {k: x for k, x in content if not _VOLATILE.fullmatch(k) and not (k in _ADDED and x == _ADDED[k])}
    return added
