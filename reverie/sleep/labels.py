"""Which windows of a batch hold labels: those are predicted in, the others are slept over."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor


def labelled_windows(loss_mask: Bool[Tensor, "B T"], window_size: int) -> list[bool]:
    """Which windows hold a label of any row."""
    return [bool(mask.any()) for mask in loss_mask.split(window_size, dim=1)]


def count_labels(loss_mask: Bool[Tensor, "B T"], window_size: int) -> list[int]:
    """Labels in each window."""
    return [int(mask.sum()) for mask in loss_mask.split(window_size, dim=1)]


def in_labelled(x: Shaped[Tensor, "B T"], window_size: int, labelled: Sequence[bool]) -> Shaped[Tensor, "B T_labelled"]:
    """What stands in labelled windows, one after the other."""
    return torch.cat([part for part, yes in zip(x.split(window_size, dim=1), labelled, strict=True) if yes], dim=1)
