"""Trained tensors of an adapter as updates of low rank: what LoRA has learnt takes a tenth of the room.

A file holds `NAME.low_rank_up` [out, r] and `NAME.low_rank_down` [r, in] in the place of NAME, which is the base's
tensor and their product.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.errors import UserError

_UP, _DOWN = ".low_rank_up", ".low_rank_down"
_NOTHING = 1e-4  # a singular value below this share of the largest is rounding


def factored(name: str, change: Float[Tensor, "out in"]) -> dict[str, Tensor] | None:
    """The factors of a change of a matrix by the names that they have in files; None if they are not smaller."""
    u, s, vh = torch.linalg.svd(change.float(), full_matrices=False)
    rank = int((s > _NOTHING * s[0]).sum())
    if rank * sum(change.shape) >= change.numel():
        return None
    root = s[:rank].sqrt()  # so that both are of about the same size, which float16 wants
    return {f"{name}{_UP}": u[:, :rank] * root, f"{name}{_DOWN}": root[:, None] * vh[:rank]}


def unfactored(place: str, tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a file holds, with whole tensors in the place of factors.

    Args:
        place: of the file, for errors.
        base: the tensors that were updated, by name.

    Raises:
        UserError: factors do not fit each other or the base.
    """
    whole = {key: x for key, x in tensors.items() if not key.endswith((_UP, _DOWN))}
    for name in sorted({key.removesuffix(_UP).removesuffix(_DOWN) for key in tensors.keys() - whole.keys()}):
        up, down, old = tensors.get(f"{name}{_UP}"), tensors.get(f"{name}{_DOWN}"), base.get(name)
        fits = up is not None and down is not None and up.ndim == down.ndim == 2 and up.shape[1] == down.shape[0]
        if up is None or down is None or old is None or not fits or old.shape != (len(up), down.shape[1]):
            raise UserError(f"{place} is not as it was written: the update of {name} does not fit")
        if name in whole or not (up.is_floating_point() and down.is_floating_point()):
            raise UserError(f"{place} is not as it was written: {name} is there twice, or its update is of integers")
        whole[name] = old + (up.float() @ down.float()).to(old)
    return whole
