"""The training loop: data, rollout, gradients, optimisers, evaluation, checkpoints, and a result card at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from reverie.card import Chance, CurvePoint, RunCard, save_card
from reverie.errors import UserError
from reverie.evaluate import evaluate
from reverie.model import HybridLM, count_parameters, new_model
from reverie.provenance import commit_id, hardware
from reverie.recipe import Recipe, changed
from reverie.sleep import rollout
from reverie.tasks import Batch, Score
from reverie.train.batches import batches
from reverie.train.checkpoint import FILE_NAME, Progress, load_checkpoint, save_checkpoint
from reverie.train.optim import build_optimizers, set_lr
from reverie.train.stages import freeze_others, stage_at

CARD_NAME = "card.json"

Report = Callable[[Progress, float], None]
"""Called after every step with the progress so far and the step's loss."""


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    report: Report = lambda progress, loss: None,
) -> RunCard:
    """Train by a recipe; leave checkpoint, TensorBoard curves and card in `out`.

    Same recipe, same machine, same curve; and with `resume` the same curve as without the break.

    Raises:
        UserError: `out` holds another run, the checkpoint cannot be read or written, or training diverges.
    """
    commit = commit_id()  # of the code that runs: the checkout may move on meanwhile
    checkpoint_path = out / FILE_NAME
    model = new_model(recipe.model, recipe.train.seed).to(device)
    optimizers = build_optimizers(model, recipe.optim)
    progress = Progress()
    if resume and not checkpoint_path.exists():
        raise UserError(f"{out} holds no run to go on with: leave out --resume to start one")
    if resume:
        checkpoint = load_checkpoint(checkpoint_path)
        if checkpoint.recipe != recipe:
            raise UserError(
                f"{checkpoint_path} was made by another recipe; resume with the settings it was started with"
            )
        checkpoint.restore(model, optimizers)
        progress = checkpoint.progress
    elif checkpoint_path.exists():
        raise UserError(f"{out} already holds a run: add --resume to go on with it, or choose another --out")

    def diverged(where: str) -> UserError:
        return UserError(
            f"training diverged at step {progress.step} ({where}): {checkpoint_path} keeps the last good state, "
            f"try a lower optim.muon_lr than {recipe.optim.muon_lr:g} and another --out"
        )

    def save() -> None:
        if where := _not_finite(model.named_parameters()):
            raise diverged(f"the parameter {where} is not finite")
        save_checkpoint(checkpoint_path, recipe, model, optimizers, progress)

    # A task that cannot make its examples says so here, before anything is written; evaluation needs them anyway.
    recipe.task.batch("test", 0, 0, range(len(recipe.task.depths())))
    if progress.step == 0:
        save()
    with (
        SummaryWriter(str(out / "tensorboard"), purge_step=progress.step + 1) as writer,
        batches(recipe, progress.step) as made,
    ):
        started = time.perf_counter() - progress.wall_time_s
        for examples in made:
            progress.step += 1
            batch = Batch(*(x.to(device) for x in examples))
            try:
                loss = train_step(recipe, model, optimizers, progress.step - 1, batch)
            except FloatingPointError as error:
                raise diverged(str(error)) from error
            progress.tokens += recipe.train.batch_size * recipe.task.sequence_length
            progress.wall_time_s = time.perf_counter() - started
            progress.loss_sum, progress.loss_count = progress.loss_sum + loss, progress.loss_count + 1
            last = progress.step == recipe.train.steps
            if last or progress.step % recipe.train.eval_every == 0:
                _measure(recipe, model, progress, writer, device)
            if last or progress.step % recipe.train.checkpoint_every == 0:
                save()
            report(progress, loss)
    score = evaluate(model, recipe.task, recipe.sleep, recipe.train.eval_examples, generate=True, device=device)
    card = make_card(recipe, model, progress, score, commit)
    save_card(card, out / CARD_NAME)
    return card


def train_step(
    recipe: Recipe, model: HybridLM, optimizers: list[torch.optim.Optimizer], step: int, batch: Batch
) -> float:
    """One optimiser step on the batch of that step (0 is the first), as its stage says.

    The batch is where the model is. Returns the loss in nats per labelled token.

    Raises:
        FloatingPointError: the loss or a gradient is not finite; parameters and optimisers are as before the step.
    """
    stage = stage_at(recipe, step)
    freeze_others(model, stage)
    with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=recipe.train.dtype == "bfloat16"):
        logits, _ = rollout(model, batch.tokens, batch.loss_mask, stage.sleep)
    loss = F.cross_entropy(logits.float(), batch.targets[batch.loss_mask])
    loss.backward()
    value, norm = loss.item(), nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if not math.isfinite(value) or not norm.isfinite():
        tensors = [(f"the parameter {name}", p) for name, p in model.named_parameters()]
        tensors += [(f"the gradient of {name}", p.grad) for name, p in model.named_parameters() if p.grad is not None]
        where = _not_finite(tensors)
        raise FloatingPointError(f"the loss is {value}" + (f", and {where} is not finite" if where else ""))
    nn.utils.clip_grads_with_norm_(model.parameters(), recipe.optim.grad_clip, norm)
    set_lr(optimizers, recipe.optim, step - stage.first, stage.steps)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return value


def _not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds NaN or infinity."""
    return next((name for name, tensor in tensors if not tensor.isfinite().all()), None)


def _measure(
    recipe: Recipe, model: HybridLM, progress: Progress, writer: SummaryWriter, device: torch.device | str
) -> None:
    """Evaluate under the eviction that the newest step trained with, and add a point to the curve."""
    sleep = stage_at(recipe, progress.step - 1).sleep
    score = evaluate(model, recipe.task, sleep, recipe.train.eval_examples, device=device)
    train_loss = progress.loss_sum / progress.loss_count
    progress.curve.append(
        {
            "step": progress.step,
            "tokens": progress.tokens,
            "wall_time_s": progress.wall_time_s,
            "train_loss": train_loss,
            "score": score.summary(),
        }
    )
    progress.loss_sum, progress.loss_count = 0.0, 0
    writer.add_scalar("loss/train", train_loss, progress.step)
    writer.add_scalar("loss/held-out", score.loss, progress.step)
    writer.add_scalar("accuracy/exact", score.exact_accuracy, progress.step)
    for depth, part in score.summary()["by_depth"].items():
        writer.add_scalar(f"accuracy/depth {depth}", part["accuracy"], progress.step)


def model_kind(recipe: Recipe) -> str:
    """ "transformer", "hybrid" or "sleep": what the field calls a model of this recipe."""
    if set(recipe.model.layers) == {"attn"}:
        return "transformer"
    return "hybrid" if recipe.sleep.num_sleep_passes == 1 else "sleep"


def make_card(recipe: Recipe, model: HybridLM, progress: Progress, score: Score, commit: str) -> RunCard:
    """The result card of a run."""
    by_depth = {str(depth): p for depth, p in recipe.task.chance().items()}
    content: dict[str, Any] = {
        "name": recipe.name,
        "model": model_kind(recipe),
        "num_sleep_passes": recipe.sleep.num_sleep_passes,
        "seed": recipe.train.seed,
        "recipe": recipe.model_dump(mode="json"),
        "commit": commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "wall_time_s": progress.wall_time_s,
        "tokens": progress.tokens,
        "steps": progress.step,
        "parameters": count_parameters(model),
        "score": score.summary(),
        "chance": Chance(by_depth=by_depth, exact=recipe.task.chance_exact()),
        "curve": [CurvePoint.model_validate(point) for point in progress.curve],
    }
    return RunCard(**content)


def evaluate_run(run: Path, *, num_sleep_passes: int | None = None, device: torch.device | str = "cpu") -> RunCard:
    """Evaluate the checkpoint of a run, if asked with another number of sleep passes than it was trained with.

    Raises:
        UserError: there is no run, or its checkpoint cannot be read.
    """
    if not (run / FILE_NAME).is_file():
        raise UserError(f"there is no run at {run}: give the folder that reverie train wrote, such as runs/depo/nano")
    checkpoint = load_checkpoint(run / FILE_NAME)
    recipe = checkpoint.recipe
    if num_sleep_passes is not None:
        recipe = changed(recipe, sleep={"num_sleep_passes": num_sleep_passes})
    model = new_model(recipe.model, recipe.train.seed).to(device)
    checkpoint.restore_model(model)
    score = evaluate(model, recipe.task, recipe.sleep, recipe.train.eval_examples, generate=True, device=device)
    return make_card(recipe, model, checkpoint.progress, score, commit_id())
