"""Muon for hidden matrices, AdamW for the rest, and the course of both learning rates (paper, "Optimiser")."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reverie.recipe import OptimConfig
from reverie.train.muon import Muon, ShardedMuon


def parameter_groups(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every trainable parameter, by name, in exactly one group: (hidden matrices, the rest).

    Hidden matrices are the weights of linear layers other than the output head. The rest: embeddings, the head,
    convolution taps, biases and gains.
    """
    hidden = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] != "lm_head"
    }
    matrices, rest = {}, {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (matrices if name in hidden else rest)[name] = parameter
    return matrices, rest


def build_optimizers(model: nn.Module, config: OptimConfig, *, capturable: bool = False) -> list[Optimizer]:
    """[Muon, AdamW] over the two parameter groups, both at their peak learning rate.

    With `capturable` learning rates and counts of steps are where the parameters are, so that a CUDA graph reads them.
    """
    matrices, rest = parameter_groups(model)
    sharded = any(hasattr(matrix, "to_local") for matrix in matrices.values())
    muon = ShardedMuon if sharded else Muon
    device = next(model.parameters()).device

    def lr(peak: float) -> Any:  # of Muon, PyTorch declares that it takes no tensor, and it does
        return torch.tensor(peak, device=device) if capturable else peak

    adamw = torch.optim.AdamW(
        rest.items(), lr=lr(config.adamw_lr), weight_decay=config.weight_decay, capturable=capturable
    )
    # It would warn that its first steps are not captured, as if that were a mistake.
    adamw._warned_capturable_if_run_uncaptured = True  # pyright: ignore[reportAttributeAccessIssue]
    return [
        muon(matrices.items(), lr=lr(config.muon_lr), weight_decay=config.weight_decay),
        adamw,
    ]


def lr_factor(config: OptimConfig, step: int, total_steps: int) -> float:
    """The share of the peak learning rate at a step (0 is the first): linear warm-up, a plateau until
    `decay_start`, then decay to the end."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    start = max(config.warmup_steps, round(config.decay_start * total_steps))
    progress = min(max(step - start, 0) / max(total_steps - start, 1), 1.0)
    left = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[config.decay]
    return warmup * (config.final_lr_fraction + (1.0 - config.final_lr_fraction) * left)


def set_lr(optimizers: list[Optimizer], config: OptimConfig, step: int, total_steps: int) -> None:
    factor = lr_factor(config, step, total_steps)
    for optimizer, peak in zip(optimizers, (config.muon_lr, config.adamw_lr), strict=True):
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(peak * factor)
            else:
                group["lr"] = peak * factor
