"""Fingerprint of a model, a hash of its weights and config: memories belong to one."""

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from reverie.errors import UserError
from reverie.model import Injection

# Settings that configs did not have when the first memories were written, off as those models have them.
_ADDED = {"value_embedding": False, "mixers": {}, "injection": "none"}

# Keys of a config that transformers adds or drops from one save to the next, or that only decoding reads.
_VOLATILE = re.compile(r"_.*|.*_token_id|architectures|dtype|torch_dtype|transformers_version|use_cache")

_known: WeakKeyDictionary[nn.Module, tuple[object, str]] = WeakKeyDictionary()


def fingerprint(model: object, *, anew: bool = False) -> str:
    """Hex SHA-256 of weights and config; the same on any device, and whatever wraps the model.

    It is cached until a weight is written to or the config changes.

    Args:
        model: a module, or an object that sleeps through one, as `module_of` finds it.
        anew: compute it in any case, since writing through `parameter.data` leaves no trace.
    """
    module = module_of(model)
    tensors, config = list(module.state_dict().values()), json.dumps(_config(module), sort_keys=True, default=str)
    now = config, [(x.data_ptr(), 0 if x.is_inference() else x._version, x.shape, x.dtype) for x in tensors]
    if anew or _known.get(module, (None, ""))[0] != now:
        _known[module] = now, content_hash(config, [("", x) for x in tensors])
    return _known[module][1]


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
    for called, x in tensors:
        digest.update(f"{called}{x.dtype} {tuple(x.shape)} ".encode())
        digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
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
