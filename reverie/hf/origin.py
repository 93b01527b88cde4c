"""Where the pretrained part of a model came from, and whether it is still what was loaded.

An adapter names its base, so it must not be written for a base that has been trained since, and must not be put on
another one. Fingerprints tell, from a sample of every tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from reverie.hf.blocks import INSERTED

SAMPLE = 4096  # elements of a tensor that a fingerprint looks at


class Origin(NamedTuple):
    """A model as it was loaded."""

    name: str  # what was given to from_pretrained: a folder, or a name on the hub
    fingerprint: str  # exact, of the loaded tensors


def origin_of(model: PreTrainedModel) -> Origin | None:
    """To be asked before anything is done to the model; None where it is not as it was loaded from somewhere.

    What wrote past autograd before, as peft does when it merges an adapter, goes unseen: save a merged model first.
    """
    name = model.config._name_or_path
    if not name or not all(_as_loaded(parameter) for parameter in model.parameters()):
        return None
    return Origin(name, fingerprint(model.state_dict()))


def _as_loaded(parameter: Tensor) -> bool:
    """transformers marks what it has read from files; writing into it, as an optimiser does, makes a new version."""
    return not parameter.is_meta and parameter._version == 0 and getattr(parameter, "_is_hf_initialized", False)


def fingerprint(state_dict: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> str:
    """SHA-256 over names, shapes and evenly spaced elements of all that was not inserted, and the sums of all elements.

    Args:
        dtype: rounded to this, and without sums. In bfloat16 it is the same whether a model was loaded as float32,
            float64 or bfloat16.
    """
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        if is_inserted(name):
            continue
        sample = _sample(state_dict[name])
        if dtype is not None and sample.is_floating_point():
            sample = sample.to(dtype)
        digest.update(f"{name} {list(state_dict[name].shape)} {sample.dtype}\n".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
        if dtype is None and sample.is_floating_point():  # a few rows of an embedding may have been trained
            digest.update(f"{_sum(state_dict[name]):.7e}".encode())
    return digest.hexdigest()


def is_inserted(name: str) -> bool:
    """Whether a parameter of this name belongs to an inserted layer."""
    return f".{INSERTED}." in name


def _sum(tensor: Tensor) -> float:
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return float(torch.sum(tensor.detach(), dtype=torch.float64))


def _sample(tensor: Tensor) -> Tensor:
    """Up to `SAMPLE` elements from the first to the last: not every n-th, which might all lie in one column."""
    if isinstance(tensor, DTensor):  # shared out among processes by FSDP, all of which come by here
        tensor = tensor.full_tensor()
    count = min(tensor.numel(), SAMPLE)
    places = torch.arange(count, device=tensor.device) * (tensor.numel() - 1) // max(count - 1, 1)
    return tensor.detach().reshape(-1)[places].cpu().contiguous()
