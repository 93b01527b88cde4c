"""Which model a memory belongs to: a hash of all weights and of the config."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from reverie.errors import UserError

# What transformers writes into a config, or leaves out of it, from one save to the next; and what decoding alone reads.
_VOLATILE = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}

_known: WeakKeyDictionary[nn.Module, tuple[object, str]] = WeakKeyDictionary()


def fingerprint(model: object, *, anew: bool = False) -> str:
    """Hex SHA-256; the same wherever the same weights of the same dtype lie, and whatever wraps the model.

    It is computed again when a weight has been written to or the config is another; with `anew` in any case, since
    writing through `parameter.data` leaves no trace.

    Args:
        model: a module, or what sleeps through one, as `module_of` finds it.
    """
    module = module_of(model)
    tensors, config = list(module.state_dict().values()), json.dumps(_config(module), sort_keys=True, default=str)
    now = config, [(x.data_ptr(), 0 if x.is_inference() else x._version, x.shape, x.dtype) for x in tensors]
    if anew or _known.get(module, (None, ""))[0] != now:
        _known[module] = now, _hash(config, tensors)
    return _known[module][1]


def module_of(model: object) -> nn.Module:
    """The module that holds the weights: the model itself, or that of its `sleeping` part.

    Raises UserError for anything else.
    """
    if isinstance(part := getattr(model, "sleeping", None), nn.Module):
        return part
    if isinstance(model, nn.Module):
        return model
    for name in ("sleeping", "decoder"):
        if hasattr(model, name):
            return module_of(getattr(model, name))
    raise UserError(f"a {type(model).__name__} is no model: give one of reverie's or of transformers'")


def tensor_bytes(x: Tensor) -> memoryview:
    """Its values as they lie in memory, row by row."""
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _hash(config: str, tensors: list[Tensor]) -> str:
    digest = hashlib.sha256(config.encode())
    for x in tensors:
        digest.update(f"{x.dtype} {tuple(x.shape)} ".encode())
        digest.update(tensor_bytes(x))
    return digest.hexdigest()


def _volatile(key: str) -> bool:
    return key in _VOLATILE or key[:1] == "_" or key.endswith("_token_id")


def _config(module: nn.Module) -> dict[str, Any]:
    """Of the module, or of the first one inside: sizes of reverie's models, a config of transformers."""
    config = next((part.config for part in module.modules() if hasattr(part, "config")), None)
    for name in ("model_dump", "to_dict"):
        if hasattr(config, name):
            content = getattr(config, name)()
            return {key: value for key, value in content.items() if not _volatile(key)}
    return {}
