"""The optimisers of a recipe, the course of their learning rates, and Muon (paper, "Optimiser")."""

import math
from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from reverie.errors import UserError
from reverie.model import LanguageModel
from reverie.recipe import OptimConfig
from reverie.recipe.optim import optimizer_class, takes

SHARDED = (
    "muon", "adamw", "Adam", "Adamax", "NAdam", "RAdam", "SGD", "ASGD", "RMSprop", "Adagrad", "Adadelta"
)  # fmt: skip
"""Optimisers whose steps and states are, under FSDP2, those of whole parameters."""


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


def optimized(model: LanguageModel, config: OptimConfig) -> dict[str, dict[str, Tensor]]:
    """The parameters, by name, that each of the recipe's optimisers moves, by the key of the optimiser in `[optim]`."""
    matrices, rest = parameter_groups(model)
    if config.matrices is None:
        matrices, rest = {}, {**matrices, **rest}
    new = {id(p) for p in (rest.values() if config.pretrained is None else model.fast_weight_parameters())}
    groups = {
        "matrices": matrices,
        "rest": {name: p for name, p in rest.items() if id(p) in new},
        "pretrained": {name: p for name, p in rest.items() if id(p) not in new},
    }
    return {group: parameters for group, parameters in groups.items() if parameters}


def build_optimizers(model: LanguageModel, config: OptimConfig, *, capturable: bool = False) -> list[Optimizer]:
    """The optimisers of a recipe at their peak learning rates; groups with the same one, but for its rate, share it.

    With `capturable` learning rates and counts of steps are where the parameters are, so that a CUDA graph reads them.

    Raises:
        UserError: one of them cannot be recorded, or cannot move parameters that are shared out among processes.
    """
    groups, device = optimized(model, config), next(model.parameters()).device
    sharded = any(hasattr(p, "to_local") for p in model.parameters())
    shared: list[tuple[type[Optimizer], dict[str, Any], list[dict[str, Any]]]] = []
    for group, parameters in groups.items():
        chosen = config.optimizers[group]
        check_optimizer(group, chosen.name, capturable=capturable, sharded=sharded)
        kind, options = optimizer_class(chosen.name), chosen.arguments
        if kind is torch.optim.Muon:
            kind = ShardedMuon if sharded else Muon
        elif capturable:
            options["capturable"] = True
        if takes(chosen.name, "weight_decay"):
            options["weight_decay"] = config.weight_decay_of(group)
        # Of Muon, PyTorch declares that its learning rate is no tensor, and it may be one.
        lr: Any = torch.tensor(chosen.lr, device=device) if capturable else chosen.lr
        part = {"params": list(parameters.items()), "lr": lr, "peak": chosen.lr}
        if same := [parts for other, its, parts in shared if (other, its) == (kind, options)]:
            same[0].append(part)
        else:
            shared.append((kind, options, [part]))
    optimizers = [kind(parts, **options) for kind, options, parts in shared]
    for optimizer in optimizers if capturable else ():
        # It would warn that its first steps are not captured, as if that were a mistake.
        optimizer._warned_capturable_if_run_uncaptured = True  # pyright: ignore[reportAttributeAccessIssue]
    return optimizers


def check_optimizer(group: str, name: str, *, capturable: bool, sharded: bool) -> None:
    """Raises UserError where an optimiser cannot take steps like these."""
    if capturable and name != "muon" and not takes(name, "capturable"):
        raise UserError(
            f"optim.{group}.name is {name}, whose steps cannot be recorded: choose another one, such as adamw, or set "
            "train.cuda_graph=false"
        )
    if sharded and name not in SHARDED:
        raise UserError(
            f"optim.{group}.name is {name}, which does not move parameters that are shared out among processes: choose "
            f"one of {', '.join(SHARDED)}, or train without FSDP"
        )


def lr_factor(config: OptimConfig, step: int, total_steps: int) -> float:
    """The share of the peak learning rate at a step (0 is the first): linear warm-up, a plateau until
    `decay_start`, then decay to the end."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    start = max(config.warmup_steps, round(config.decay_start * total_steps))
    progress = min(max(step - start, 0) / max(total_steps - start, 1), 1.0)
    left = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}[
        config.decay
    ]
    return warmup * (config.final_lr_fraction + (1.0 - config.final_lr_fraction) * left)


def set_lr(optimizers: list[Optimizer], config: OptimConfig, step: int, total_steps: int) -> None:
    factor = lr_factor(config, step, total_steps)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(group["peak"] * factor)
        else:
            group["lr"] = group["peak"] * factor


WIDE = 2.5  # columns for each row, from which on products of Gram matrices are cheaper
FEW_STEPS = 5  # after which what they round is still small


def orthogonalise(
    matrices: Float[Tensor, "n R C"], coefficients: tuple[float, float, float], steps: int, eps: float
) -> Float[Tensor, "n R C"]:
    """Each matrix with all its singular values brought to about 1 (0.7 to 1.2), by that many quintic iterations.

    In float32 on CPU, in bfloat16, which is enough, elsewhere.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    exact = matrices.device.type == "cpu"
    x = matrices.to(torch.float32 if exact else torch.bfloat16)
    x = x.mT if tall else x  # the smaller Gram matrix
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    wide = x.shape[-1] >= WIDE * x.shape[-2]
    x = (_by_gram_matrix if exact and wide and steps <= FEW_STEPS else _iterations)(x, coefficients, steps)
    return (x.mT if tall else x).to(matrices.dtype)


def _iterations(x: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """x ← (a + b G + c G²) x, with G = x xᵀ, so many times."""
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _by_gram_matrix(x: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """The same by products of Gram matrices alone: with P = a + b G + c G², G becomes P G P, and x all P · x at last.

    For float32 and few steps: nothing corrects what is rounded in G, and each step makes it up to a² as large. After
    five it is less than 1e-3 of x, where x has a single large direction or singular values that span 1e6.
    """
    a, b, c = coefficients
    gram, product = x @ x.mT, None
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        gram = factor @ gram @ factor if step < steps - 1 else gram
    return x if product is None else product @ x


def _scaled_steps(updates: Tensor, group: dict[str, Any]) -> Tensor:
    """The update of parameters [n, R, C] for these averaged gradients; tall ones take larger steps."""
    rows, columns = updates.shape[-2:]
    direction = orthogonalise(updates, group["ns_coefficients"], group["ns_steps"], group["eps"])
    return direction.mul_(-group["lr"] * max(1.0, rows / columns) ** 0.5)


class Muon(torch.optim.Muon):
    """Muon (arXiv 2502.16982): a matrix moves along its averaged gradient, made orthogonal by Newton-Schulz iterations.

    Options and state are those of `torch.optim.Muon`, whose iterations run matrix by matrix, in bfloat16 everywhere: on
    a CPU without bfloat16 units that takes longer than the rest of a training step. Here matrices of one shape take
    their step together.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for same in shapes.values():
                steps = _scaled_steps(torch.stack(self._averaged(same, group)), group)
                _move(same, list(steps), group)

    def _averaged(self, parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """The gradients with momentum, to be orthogonalised, as far as this process has them."""
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)  # pyright: ignore[reportArgumentType]
        buffers = [_own_part(self.state[p]["momentum_buffer"]) for p in parameters]
        gradients = [_own_part(p.grad) for p in parameters]
        # All of them by one kernel where there is one, as on a GPU.
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])  # pyright: ignore[reportPrivateImportUsage]
        return list(torch._foreach_lerp(gradients, buffers, group["momentum"])) if group["nesterov"] else buffers  # pyright: ignore[reportPrivateImportUsage]


def _own_part(tensor: Any) -> Tensor:
    """This process's part of a tensor that is shared out among several; of another one, all."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _move(parameters: list[Tensor], steps: list[Tensor], group: dict[str, Any]) -> None:
    if group["weight_decay"]:
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_add_(parameters, steps)  # pyright: ignore[reportPrivateImportUsage]


class ShardedMuon(Muon):
    """Muon for matrices whose rows are shared out among processes (FSDP2); the same steps as with whole matrices.

    What Muon orthogonalises is a whole matrix. So each is put together in one process, which does that and hands the
    rows back, while the others do the same for the next ones. PyTorch's Muon takes such matrices too, but gathers each
    fifteen times a step, three times in each of the five Newton-Schulz iterations.
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
        updates = self._averaged(matrices, group)
        nothing = [updates[0].new_empty(0)] * (world_size - len(matrices))
        if rank < len(matrices):
            rows, columns = matrices[rank].shape
            sizes = [n * columns for n in _rows_of_each(rows, world_size)]
            matrix = torch.cat(_exchange([*updates, *nothing], sizes)).view(rows, columns)
            steps = list(_scaled_steps(matrix[None], group).reshape(-1).split(sizes))
        else:
            _exchange([*updates, *nothing], [0] * world_size)
            steps = [updates[0].new_empty(0)] * world_size
        received = _exchange(steps, [x.numel() for x in (*updates, *nothing)])
        mine = [_own_part(p) for p in matrices]
        _move(mine, [step.view_as(p) for p, step in zip(mine, received, strict=False)], group)


def _rows_of_each(rows: int, world_size: int) -> list[int]:
    """The number of rows of a matrix that each process has: blocks of the same size, as far as they go."""
    block = -(-rows // world_size)
    return [max(min(block, rows - rank * block), 0) for rank in range(world_size)]


def _exchange(parts: list[Tensor], sizes: list[int]) -> list[Tensor]:
    """Send parts[i] to process i; returns, flat, what each of them has sent here, sizes[i] numbers from process i."""
    received = parts[0].new_empty(sum(sizes))
    dist.all_to_all_single(received, torch.cat([x.reshape(-1) for x in parts]), sizes, [x.numel() for x in parts])
    return list(received.split(sizes))
