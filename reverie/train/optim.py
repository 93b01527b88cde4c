"""Muon for hidden matrices, AdamW for the rest, and the course of both learning rates (paper, "Optimiser")."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from reverie.recipe import OptimConfig


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


def build_optimizers(model: nn.Module, config: OptimConfig) -> list[Optimizer]:
    """[Muon, AdamW] over the two parameter groups, both at their peak learning rate."""
    matrices, rest = parameter_groups(model)
    sharded = any(hasattr(matrix, "to_local") for matrix in matrices.values())
    muon = ShardedMuon if sharded else torch.optim.Muon
    return [
        muon(matrices.items(), lr=config.muon_lr, weight_decay=config.weight_decay),
        torch.optim.AdamW(rest.items(), lr=config.adamw_lr, weight_decay=config.weight_decay),
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
            group["lr"] = peak * factor


class ShardedMuon(torch.optim.Muon):
    """Muon for matrices whose rows are shared out among processes (FSDP2); the same steps as with whole matrices.

    What Muon orthogonalises is a whole matrix. So each is put together in one process, which does that with PyTorch's
    Muon and hands the rows back, while the others do the same for the next ones. PyTorch's Muon takes such matrices
    too, but gathers each fifteen times a step, three times in each of the five Newton-Schulz iterations.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            matrices = [p for p in group["params"] if p.grad is not None]
            for first in range(0, len(matrices), dist.get_world_size()):
                self._step(matrices[first : first + dist.get_world_size()], group)

    def _step(self, matrices: list[Any], group: dict[str, Any]) -> None:
        """One step of at most as many matrices as there are processes; process i orthogonalises matrix i."""
        rank, world_size = dist.get_rank(), dist.get_world_size()
        updates = [self._averaged(p, group) for p in matrices]
        nothing = [updates[0].new_empty(0)] * (world_size - len(matrices))
        if rank < len(matrices):
            rows, columns = matrices[rank].shape
            sizes = [n * columns for n in _rows_of_each(rows, world_size)]
            matrix = torch.cat(_exchange([*updates, *nothing], sizes)).view(rows, columns)
            steps = list(_muon_step(matrix, group).view(-1).split(sizes))
        else:
            _exchange([*updates, *nothing], [0] * world_size)
            steps = [updates[0].new_empty(0)] * world_size
        received = _exchange(steps, [x.numel() for x in (*updates, *nothing)])
        for p, step in zip(matrices, received, strict=False):
            mine = p.to_local()
            mine.mul_(1 - group["lr"] * group["weight_decay"]).add_(step.view_as(mine))

    def _averaged(self, p: Any, group: dict[str, Any]) -> Tensor:
        """What is to be orthogonalised: the gradient with momentum, of this process's rows."""
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p.grad)
        buffer = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
        return (p.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer).to_local()


def _muon_step(matrix: Tensor, group: dict[str, Any]) -> Tensor:
    """What PyTorch's Muon adds to a parameter, without momentum and decay, if its gradient is `matrix`."""
    step = nn.Parameter(torch.zeros_like(matrix))
    step.grad = matrix
    same = {key: group[key] for key in ("lr", "ns_coefficients", "ns_steps", "eps", "adjust_lr_fn")}
    torch.optim.Muon([step], weight_decay=0.0, momentum=0.0, nesterov=False, **same).step()
    return step.detach()


def _rows_of_each(rows: int, world_size: int) -> list[int]:
    """How many rows of a matrix each process has: blocks of the same size, as far as they go."""
    block = -(-rows // world_size)
    return [max(min(block, rows - rank * block), 0) for rank in range(world_size)]


def _exchange(parts: list[Tensor], sizes: list[int]) -> list[Tensor]:
    """Send parts[i] to process i; returns, flat, what each of them has sent here, sizes[i] numbers from process i."""
    received = parts[0].new_empty(sum(sizes))
    dist.all_to_all_single(received, torch.cat([x.reshape(-1) for x in parts]), sizes, [x.numel() for x in parts])
    return list(received.split(sizes))
