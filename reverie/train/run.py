"""The training loop: data, rollout, gradients, optimisers, evaluation, checkpoints, and a result card at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import torch
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter

from reverie.errors import UserError
from reverie.files import writing
from reverie.interrupts import TIME_IS_UP, Stopped, StopRequest, stop_requests
from reverie.model import LanguageModel
from reverie.recipe import Recipe
from reverie.recipe.build import build_model
from reverie.results.card import RunCard, save_card
from reverie.results.checkpoint import Progress, find_checkpoint, load_checkpoint
from reverie.results.evaluate import evaluate
from reverie.results.provenance import commit_id
from reverie.results.run import CARD_NAME, make_card
from reverie.sleep import SleepConfig
from reverie.tasks import Score
from reverie.train.batches import KILLED
from reverie.train.checkpoint import refuse_existing, remove_unfinished_folders, restore, save_run
from reverie.train.compiled import compile_blocks, uncompiled
from reverie.train.deepening import at_end_of_stretch, deepen, deepest
from reverie.train.distributed import ALONE, ParallelModel, Processes, check_batch
from reverie.train.graphed import GraphedSteps, check_graphable
from reverie.train.lock import run_lock
from reverie.train.optim import build_optimizers
from reverie.train.ready import Ready, ready_batches
from reverie.train.stages import stage_at
from reverie.train.step import EagerSteps, Step, not_finite
from reverie.train.time_limit import TimeLimit

Report = Callable[[Progress, float], None]
"""Called with the progress so far and the newest loss: at every step, with `train.cuda_graph` every twenty."""


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    report: Report = lambda progress, loss: None,
    processes: Processes = ALONE,
    max_seconds: float | None = None,
) -> RunCard:
    """Train by a recipe; leave checkpoint, TensorBoard curves and card in `out`.

    Same recipe, same machine, same curve; and with `resume` the same curve as without the break (with
    `train.cuda_graph` to rounding: the first steps after a break are not recorded ones). Several processes share out
    the examples of each step: the same curve to rounding, however many they are. One of them reports.

    SIGTERM and Ctrl-C finish the step that is going, and save. With `max_seconds` training stops, and saves, before a
    step, an evaluation or a checkpoint that would not be done by then, to judge by those before; it takes one step at
    least. The final evaluation and the card come with the call that finishes the steps, or with the next one.

    Raises:
        UserError: `out` holds another run, another process trains there, the checkpoint cannot be read or written, or
            training diverges.
        Stopped: such a signal came, or the time was up; with `resume` the run goes on.
    """
    limit = TimeLimit(max_seconds)
    commit = commit_id()  # of the code that runs: the checkout may move on meanwhile
    check_batch(recipe, processes.world_size)
    if resume and find_checkpoint(out) is None:
        raise UserError(f"{out} holds no run to go on with")
    # A task that cannot make its examples says so here, before anything is written; evaluation needs them anyway.
    recipe.task.batch("test", 0, 0, range(len(recipe.task.depths())))
    with run_lock(out) if processes.is_first else contextlib.nullcontext(), _float32_products(recipe, device):
        return _train(recipe, out, resume, device, report, commit, processes, limit)


def _train(
    recipe: Recipe,
    out: Path,
    resume: bool,
    device: torch.device | str,
    report: Report,
    commit: str,
    processes: Processes,
    limit: TimeLimit,
) -> RunCard:
    model = build_model(recipe.model, recipe.train.seed)
    parallel = ParallelModel(model, device, processes)
    graphed = recipe.train.cuda_graph
    if graphed:
        check_graphable(model, device, processes)
    if recipe.train.compile:
        compile_blocks(model, device)
    optimizers = build_optimizers(model, recipe.optim, capturable=graphed)
    if processes.is_first:
        remove_unfinished_folders(out)
    progress = _start(recipe, out, resume, model, optimizers)
    found = processes.gather(progress.step)  # when all have seen what is there
    if len(set(found)) > 1:
        raise UserError(
            f"the processes found checkpoints of different steps in {out}, {min(found)} and {max(found)}: "
            "the folder of the run must be one that all of them see"
        )

    def diverged(where: str) -> UserError:
        return UserError(
            f"training diverged at step {progress.step} ({where}): {find_checkpoint(out)} keeps the last good state, "
            f"try a lower optim.muon_lr than {recipe.optim.muon_lr:g} and another folder"
        )

    def save() -> None:
        if where := not_finite(model.named_parameters()):
            raise diverged(f"the parameter {where} is not finite")
        with limit.timing("checkpoint"):
            save_run(out, recipe, model, optimizers, progress, processes)

    if progress.step == 0:
        save()
    first = progress.step
    with (
        stop_requests() as stop,
        _board(out, progress.step + 1) if processes.is_first else contextlib.nullcontext() as writer,
        ready_batches(
            recipe, progress.step, processes.share(recipe.train.batch_size), device, partial(deepest, recipe, progress)
        ) as made,
    ):
        steps = (GraphedSteps if graphed else EagerSteps)(recipe, model, optimizers, parallel)
        started = time.perf_counter() - progress.wall_time_s

        def settle() -> Step | None:
            """The newest of the steps that were taken and not asked about yet; all are noted."""
            try:
                found = steps.found()
            except FloatingPointError as error:
                raise diverged(str(error)) from error
            progress.wall_time_s = time.perf_counter() - started
            losses = sum(step.loss for step in found)
            progress.loss_sum += losses
            progress.stretch_loss_sum += losses
            progress.loss_count += len(found)
            return found[-1] if found else None

        while progress.step < recipe.train.steps:
            measured = _is_due(recipe, progress.step + 1, recipe.train.eval_every)
            coming = ["batch", "step", *["evaluation"] * measured, "checkpoint"]
            if progress.step > first and not limit.allows(*coming):
                stop.requested = stop.requested or TIME_IS_UP
            with limit.timing("batch"):
                ready = _next_batch(made, stop)
            # Now that each knows whether it has a batch: all take the step, or none.
            request, lacking = processes.agree(stop.requested, lacking=ready is None)
            if request:
                newest = settle()
                save()
                if newest is not None and processes.is_first:
                    report(progress, newest.loss)
                raise Stopped(request, progress.step, recipe.train.steps)
            if ready is None or lacking is not None:
                raise UserError((f"rank {lacking} of {processes.world_size}: " if processes.parallel else "") + KILLED)
            progress.step += 1
            saved = _is_due(recipe, progress.step, recipe.train.checkpoint_every)
            with limit.timing("step" if progress.step > first + 1 else "first step"):  # in which blocks are compiled
                try:
                    steps.take(progress.step - 1, ready, watch=measured)
                except FloatingPointError as error:
                    raise diverged(str(error)) from error
                progress.tokens += recipe.train.batch_size * recipe.task.sequence_length
                decided = at_end_of_stretch(recipe, progress)
                newest = settle() if steps.full or measured or saved or decided else None
            if newest is None:
                continue
            if measured:
                with limit.timing("evaluation"):
                    _measure(recipe, parallel, progress, newest, writer, device)
            if decided:
                deepen(recipe, progress)
            if saved:
                save()
            if processes.is_first:
                report(progress, newest.loss)
    late, _ = processes.agree(None if limit.allows("evaluation") else TIME_IS_UP, lacking=False)
    if late:
        raise Stopped(late, progress.step, recipe.train.steps)
    score = _evaluate(recipe, parallel, recipe.sleep, device, generate=True)
    card = make_card(
        recipe, model, progress, score, commit, processes=processes.world_size, parallel=processes.parallel
    )
    if processes.is_first:
        save_card(card, out / CARD_NAME)
    return card


def _start(recipe: Recipe, out: Path, resume: bool, model: LanguageModel, optimizers: list[Optimizer]) -> Progress:
    """Where training begins: at step 0, or with `resume` where the checkpoint in `out`, if there is one, has it."""
    place = find_checkpoint(out)
    if place is None:
        if recipe.train.init_from is not None:
            _begin_with(recipe.train.init_from, recipe, model)
        return Progress()
    if not resume:
        refuse_existing(out)
    checkpoint = load_checkpoint(place)
    if checkpoint.recipe != recipe:
        raise UserError(f"{place} was made by another recipe; resume with the settings it was started with")
    restore(checkpoint, model, optimizers)
    return checkpoint.progress


def _begin_with(run: str, recipe: Recipe, model: LanguageModel) -> None:
    """Take the weights of a run in another folder."""
    place = find_checkpoint(Path(run))
    if place is None:
        raise UserError(f"train.init_from is {run}, but there is no checkpoint: give the folder of a run")
    checkpoint = load_checkpoint(place)
    models = [model.model_dump(exclude={"backend"}) for model in (checkpoint.recipe.model, recipe.model)]
    if models[0] != models[1]:
        raise UserError(
            f"train.init_from is {run}, whose model is not the one of this recipe: their [model] must agree"
        )
    checkpoint.restore_model(model)


@contextlib.contextmanager
def _float32_products(recipe: Recipe, device: torch.device | str) -> Iterator[None]:
    """Where most products are in bfloat16, a GPU may make those of float32 in TF32, which has more digits than that."""
    before = torch.get_float32_matmul_precision()
    if recipe.train.dtype == "bfloat16" and torch.device(device).type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _is_due(recipe: Recipe, step: int, every: int) -> bool:
    """After every so many steps, and after the last one."""
    return step == recipe.train.steps or step % every == 0


def _next_batch(made: Iterator[Ready], stop: StopRequest) -> Ready | None:
    """None if asked to stop, or if a process that makes batches has ended, as by a SIGTERM to the whole group."""
    try:
        return None if stop.requested else next(made)
    except BrokenProcessPool:
        return None


@contextlib.contextmanager
def _board(out: Path, first_step: int) -> Iterator[SummaryWriter]:
    """TensorBoard's writer, from that step on; a full disk is a UserError."""
    folder = out / "tensorboard"
    with writing(folder):
        # It writes when we flush: by itself it would do so in a thread of its own, with errors that nobody can catch.
        writer = SummaryWriter(str(folder), purge_step=first_step, flush_secs=10**6)
    try:
        yield writer
    finally:
        with writing(folder):
            writer.close()


def _evaluate(
    recipe: Recipe, parallel: ParallelModel, sleep: SleepConfig, device: torch.device | str, *, generate: bool = False
) -> Score:
    """The score on held-out examples, whose batches the processes share out."""
    processes = parallel.processes

    def own_score(model: LanguageModel) -> Score:
        share, examples = (processes.rank, processes.world_size), recipe.train.eval_examples
        with uncompiled():
            return evaluate(model, recipe.task, sleep, examples, generate=generate, device=device, share=share)

    return sum(processes.gather(parallel.run(own_score)), Score())


def _measure(
    recipe: Recipe,
    parallel: ParallelModel,
    progress: Progress,
    step: Step,
    writer: SummaryWriter | None,
    device: torch.device | str,
) -> None:
    """Evaluate under the eviction that the newest step trained with, and add a point to the curve."""
    score = _evaluate(recipe, parallel, stage_at(recipe, progress.step - 1).sleep, device)
    train_loss = progress.loss_sum / progress.loss_count
    progress.curve.append(
        {
            "step": progress.step,
            "tokens": progress.tokens,
            "wall_time_s": progress.wall_time_s,
            "train_loss": train_loss,
            "depth": deepest(recipe, progress, progress.step - 1),
            "gradient_norm": step.gradient_norm,
            "passes": step.passes.model_dump() if step.passes else None,
            "score": score.summary(),
        }
    )
    progress.loss_sum, progress.loss_count = 0.0, 0
    if writer is None:
        return
    with writing(Path(writer.log_dir)):
        writer.add_scalar("loss/train", train_loss, progress.step)
        writer.add_scalar("loss/held-out", score.loss, progress.step)
        writer.add_scalar("accuracy/exact", score.exact_accuracy, progress.step)
        for depth, part in score.summary()["by_depth"].items():
            writer.add_scalar(f"accuracy/depth {depth}", part["accuracy"], progress.step)
        writer.add_scalar("curriculum/deepest", progress.curve[-1]["depth"], progress.step)
        writer.add_scalar("gradient/norm", step.gradient_norm, progress.step)
        statistics = step.passes.model_dump() if step.passes else {}
        for name, values in statistics.items():
            for n, value in enumerate(values, start=1):
                writer.add_scalar(f"sleep/{name}, pass {n}", value, progress.step)
        writer.flush()  # before the checkpoint, for a resumed run does not measure this point again
