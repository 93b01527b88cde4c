"""The whole model, computed the way that a run would be, against the same model computed the plain way, on the device.

`truth`      loss and gradients of a step with the specification of the rule, eager, in float32 without TF32
`check_way`  loss and gradients of the same step in the way under test: number format, kernels, compiled or not
`first_steps`, `same_steps`    for a CUDA graph, which holds the optimisers too: the first steps of training, and the
                               weights behind them, must be those without the graph
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from reverie.model import LanguageModel
from reverie.recipe import Recipe, changed
from reverie.recipe.build import build_model
from reverie.results.checkpoint import FILE_NAME, Progress, load_checkpoint
from reverie.sleep import rollout
from reverie.sleep.gradients import Backward
from reverie.tasks import Batch
from reverie.train.compiled import compile_blocks
from reverie.train.data import make_batch
from reverie.train.run import train
from reverie.train.schedule import Schedule

# Of the loss, of all gradients together, and of those of one parameter: N passes over W windows add up what rounding
# does to one product; a parameter that gets hardly any gradient holds more of it.
TOLERANCES = {"float32": (1e-3, 1e-2, 0.1), "bfloat16": (2e-2, 0.1, 0.3)}
STEP_TOLERANCES = (1e-3, 5e-2)  # of losses, of how far the weights have moved
STEP_LR = 1e-3
NOISE = 0.5  # of a matrix, by the root of its columns: in a new model every block is the identity
DECAY = 3.0  # on top of dt_bias: a new model forgets so slowly that a check would not see it if it did not
SMALLEST_SHARE = 1e-3  # of the whole gradient: below, a parameter's own error is not looked at
WHOLE_TOKENS = 2**16  # of a batch that is taken as it is: its blocks need not be compiled for another shape
CHECKED_TOKENS = 2**13  # of a larger one
TRUTH_BYTES = {"cuda": 24 * 2**30, "cpu": 2**30}  # for what the specification keeps for its backward


class Gradients(NamedTuple):
    """Of one step, before clipping."""

    loss: float
    by_name: dict[str, Tensor]  # float32, on the CPU


class _Enough(Exception):
    """As many steps as were wanted are done."""


def truth(recipe: Recipe, device: torch.device, path: Path) -> dict[str, Any]:
    """Write the gradients to `path`; returns the loss."""
    plain = changed(
        recipe,
        train={"dtype": "float32", "compile": False},
        **({"model": {"backend": "reference"}} if hasattr(recipe.model, "backend") else {}),
    )
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        found, rows = _as_memory_allows(plain, device)
    finally:
        torch.set_float32_matmul_precision(before)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(found.by_name, path, metadata={"loss": repr(found.loss)})
    return {"loss": found.loss, "rows_at_a_time": rows}


def _as_memory_allows(plain: Recipe, device: torch.device) -> tuple[Gradients, int]:
    """With fewer rows at a time where memory runs out: the sum stays the same."""
    rows = _rows_at_a_time(plain, TRUTH_BYTES[device.type])
    while True:
        try:
            return gradients(plain, device, Backward(activation_checkpoint="pass"), rows), rows
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        rows = max(rows // 4, 1)  # outside of the handler, which keeps the tensors of what failed alive
        torch.cuda.empty_cache()


def check_way(recipe: Recipe, device: torch.device, path: Path) -> dict[str, Any]:
    """Against the truth at `path`: {"passed", "why", errors}. No CUDA graph: that is what `same_steps` is for."""
    rows = getattr(recipe.train, "micro_batch", None) or recipe.train.batch_size
    found, wanted = gradients(recipe, device, recipe.train.backward, rows), _read(path)
    errors = deviations(found, wanted)
    limits: dict[str, float] = dict(zip(("loss", "gradient", "parameter"), TOLERANCES[recipe.train.dtype], strict=True))
    wrong = [name for name, limit in limits.items() if not errors[name] <= limit]
    why = None
    if wrong:
        where = f" ({errors['worst']})" if wrong[0] == "parameter" else ""
        allowed = f"where {limits[wrong[0]]:g} is allowed"
        why = f"one step of the model: the {wrong[0]}{where} is off by {errors[wrong[0]]:.1e}, {allowed}"
    return {"passed": not wrong, "why": why, **{f"{name}_error": x for name, x in errors.items()}}


def gradients(recipe: Recipe, device: torch.device, backward: Backward, rows: int) -> Gradients:
    """Of the first rows of a batch, so many at a time, at parameters that all matter."""
    model = _random_model(recipe, device)
    if recipe.train.compile:
        compile_blocks(model, device)
    batch = Batch(*(x.to(device) for x in make_batch(recipe, 0, range(_checked_rows(recipe)))))
    windows = batch.loss_mask.split(recipe.sleep.window_size, dim=1)
    labelled, labels = [bool(mask.any()) for mask in windows], int(batch.loss_mask.sum())
    loss = 0.0
    for first in range(0, len(batch.tokens), rows):
        tokens, targets, mask = (x[first : first + rows] for x in batch[:3])
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.train.dtype == "bfloat16"):
            logits, _ = rollout(model, tokens, mask, Schedule(recipe, 0), labelled=labelled, backward=backward)
        part = F.cross_entropy(logits.float(), targets[mask], reduction="sum") / labels
        part.backward()
        loss += part.item()
    return Gradients(loss, {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None})


def deviations(found: Gradients, wanted: Gradients) -> dict[str, Any]:
    """‖found − wanted‖ / ‖wanted‖ of the loss, of all gradients, of the worst parameter; infinite where one is not a
    number, or on one side alone."""
    infinite = {"loss": float("inf"), "gradient": float("inf"), "parameter": float("inf")}
    if odd := sorted(found.by_name.keys() ^ wanted.by_name.keys()):
        return {**infinite, "worst": odd[0]}
    norms = {name: float(x.double().norm()) for name, x in wanted.by_name.items()}
    apart = {name: float((found.by_name[name].double() - x.double()).norm()) for name, x in wanted.by_name.items()}
    whole = sum(norm**2 for norm in norms.values()) ** 0.5
    shares = {name: apart[name] / max(norm, SMALLEST_SHARE * whole) for name, norm in norms.items()}
    worst = max(shares, key=lambda name: _finite(shares[name]))
    return {
        "loss": _finite(abs(found.loss - wanted.loss) / abs(wanted.loss)),
        "gradient": _finite(sum(x**2 for x in apart.values()) ** 0.5 / whole),
        "parameter": _finite(shares[worst]),
        "worst": worst,
    }


def first_steps(recipe: Recipe, device: torch.device, folder: Path, steps: int) -> dict[int, float]:
    """Train that many steps in `folder`, which keeps the weights behind them; returns losses by step, where known."""
    short = changed(
        recipe,
        train={"steps": 10**6, "checkpoint_every": steps, "eval_every": 10**6},
        optim={"muon_lr": STEP_LR, "adamw_lr": STEP_LR, "warmup_steps": 0},
    )
    losses: dict[int, float] = {}

    def report(progress: Progress, loss: float) -> None:
        losses[progress.step] = loss
        if progress.step >= steps:
            raise _Enough

    with contextlib.suppress(_Enough):
        train(short, folder, device=device, report=report)
    return losses


def same_steps(recipe: Recipe, folder: Path, other: Path, losses: Sequence[dict[int, float]]) -> dict[str, Any]:
    """Whether two trainings, in the folders of `first_steps`, went the same way: {"passed", "why", errors}."""
    start = {f"model.{name}": x for name, x in build_model(recipe.model, recipe.train.seed).state_dict().items()}
    ours, theirs = (load_checkpoint(place / FILE_NAME).tensors for place in (folder, other))
    names = [name for name in start if name in ours and name in theirs]
    moved = sum(float((theirs[name] - start[name]).double().square().sum()) for name in names) ** 0.5
    apart = sum(float((ours[name] - theirs[name]).double().square().sum()) for name in names) ** 0.5
    ours_at, theirs_at = losses
    both = ours_at.keys() & theirs_at.keys()
    off = max((_finite(abs(ours_at[i] - theirs_at[i]) / abs(theirs_at[i])) for i in both), default=float("inf"))
    step = _finite(apart / moved) if moved else float("inf")
    passed = off <= STEP_TOLERANCES[0] and step <= STEP_TOLERANCES[1]
    why = None
    if not passed:
        why = f"{max(both, default=0)} steps: losses are off by {off:.1e}, the weights by {step:.1e} of their way"
    return {"passed": passed, "why": why, "loss_error": off, "step_error": step}


def _finite(x: float) -> float:
    return x if x == x else float("inf")


def _random_model(recipe: Recipe, device: torch.device) -> LanguageModel:
    model = build_model(recipe.model, recipe.train.seed)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = NOISE * (parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.2)
            parameter.add_(scale * torch.randn(parameter.shape, generator=random))
            if name.endswith("dt_bias"):
                parameter.add_(DECAY)
    return model.to(device)


def _checked_rows(recipe: Recipe) -> int:
    B, T = recipe.train.batch_size, recipe.task.sequence_length
    return B if B * T <= WHOLE_TOKENS else max(1, CHECKED_TOKENS // T)


def _rows_at_a_time(recipe: Recipe, num_bytes: int) -> int:
    """Token by token, the backward of one pass over a window keeps about three copies of S per token and block."""
    model: Any = recipe.model
    sizes = (getattr(model, key, None) or 256 for key in ("fast_heads", "key_size", "value_size"))
    H, K, V = sizes
    blocks = sum(kind != "attn" for kind in getattr(model, "layers", ())) or len(getattr(model, "behind", ())) or 1
    row = 3 * 4 * H * K * V * blocks * min(recipe.sleep.window_size, recipe.task.sequence_length)
    return max(1, min(recipe.train.batch_size, num_bytes // row))


def _read(path: Path) -> Gradients:
    with safe_open(path, framework="pt") as file:
        loss = float((file.metadata() or {})["loss"])
        return Gradients(loss, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no mapping)
