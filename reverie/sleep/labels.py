"""Which windows of a batch hold labels: there a row is predicted in, the others it sleeps over."""

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor


def labelled_windows(loss_mask: Bool[Tensor, "B T"], window_size: int) -> Bool[Tensor, "B W"]:
    """Which windows of which row hold a label; on the CPU, since that decides what runs."""
    return count_labels(loss_mask, window_size) > 0


def count_labels(loss_mask: Bool[Tensor, "*steps B T"], window_size: int) -> Int[Tensor, "*steps B W"]:
    """Labels in each window of each row; on the CPU."""
    return torch.stack([mask.sum(-1) for mask in loss_mask.split(window_size, dim=-1)], dim=-1).cpu()


def in_labelled(
    x: Shaped[Tensor, "B T"], window_size: int, labelled: Bool[Tensor, "B W"]
) -> Shaped[Tensor, "B T_labelled"]:
    """The part of x in windows with a label of any row, one window after the other."""
    windows = zip(x.split(window_size, dim=1), labelled.any(dim=0).tolist(), strict=True)
    return torch.cat([part for part, yes in windows if yes], dim=1)
