"""One recipe to one card: data, steps, evaluation, checkpoints, and how a run begins, stops and goes on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from reverie.errors import UserError
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
from reverie.train.checkpoint import refuse_existing, remove_unfinished_folders, restore, run_lock, save_run
from reverie.train.compiled import compile_blocks, uncompiled
from reverie.train.curriculum import Curriculum
from reverie.train.data import KILLED, ready_batches
from reverie.train.distributed import ALONE, ParallelModel, Processes, check_batch
from reverie.train.graphed import GraphedSteps, check_graphable
from reverie.train.optim import build_optimizers
from reverie.train.precision import float32_products
from reverie.train.schedule import Schedule
from reverie.train.step import EagerSteps, Step, not_finite
from reverie.train.time_limit import TimeLimit
from reverie.train.trackers import find_trackers, following

if TYPE_CHECKING:
    from reverie.train.adapt import Adaptation

ADAPTER = "adapter"  # in the folder of a run, what `reverie.hf.load` takes

StepReport = Callable[[Progress, float], None]
"""Called with the progress so far and the newest loss: at every step, with `train.cuda_graph` every twenty."""


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    report: StepReport = lambda progress, loss: None,
    processes: Processes = ALONE,
    max_seconds: float | None = None,
) -> RunCard:
    """Train by a recipe; leave checkpoint, card and what the trackers write in `out`.

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
    check_batch(recipe.train.batch_size, processes.world_size)
    if resume and find_checkpoint(out) is None:
        raise UserError(f"{out} holds no run to go on with")
    # A task that cannot make its examples says so here, before anything is written; evaluation needs them anyway.
    recipe.task.batch("test", 0, 0, range(len(recipe.task.depths())))
    with (
        run_lock(out) if processes.is_first else contextlib.nullcontext(),
        float32_products(recipe.train.dtype, device),
    ):
        run = _Run(recipe, out, device, report, processes, limit)
        run.begin(resume)
        run.take_steps()
        return run.finish(commit)


class _Run:
    """A model in training, and all that goes with it."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        device: torch.device | str,
        report: StepReport,
        processes: Processes,
        limit: TimeLimit,
    ) -> None:
        self.recipe, self.out, self.device = recipe, out, device
        self.report, self.processes, self.limit = report, processes, limit
        self.trackers = find_trackers(recipe.train.trackers)
        self.model = build_model(recipe.model, recipe.train.seed)
        self.parallel = ParallelModel(self.model, device, processes)
        self.adaptation = None if recipe.adapt is None else _adaptation(recipe, self.model, processes)
        graphed = recipe.train.cuda_graph
        if graphed:
            check_graphable(self.model, device, processes)
        if recipe.train.compile:
            compile_blocks(self.model, device)
        self.optimizers = build_optimizers(self.model, recipe.optim, capturable=graphed)
        self.schedule = Schedule.of(recipe)
        if self.adaptation is not None:
            self.steps = self.adaptation.steps(self.schedule, self.optimizers, self.parallel)
        else:
            kind = GraphedSteps if graphed else EagerSteps
            self.steps = kind(self.schedule, self.model, self.optimizers, self.parallel)
        self.progress = Progress()
        self.started = 0.0  # when a run without breaks would have begun

    def begin(self, resume: bool) -> None:
        """Begin at step 0, or with `resume` go on from the checkpoint, if there is one."""
        if self.processes.is_first:
            remove_unfinished_folders(self.out)
        place = find_checkpoint(self.out)
        if place is not None:
            self._go_on_from(place, resume)
        elif self.recipe.train.init_from is not None:
            _take_weights(Path(self.recipe.train.init_from), self.recipe, self.model)
            if self.adaptation is not None:
                self.adaptation.check_beginning()
        found = self.processes.gather(self.progress.step)  # when all have seen what is there
        if len(set(found)) > 1:
            raise UserError(
                f"the processes found checkpoints of different steps in {self.out}, {min(found)} and {max(found)}: "
                "the folder of the run must be one that all of them see"
            )
        if self.progress.step == 0:
            if self.adaptation is not None and self.recipe.train.init_from is None and place is None:
                self.adaptation.start()
            self._save()
        self.curriculum = Curriculum(self.recipe.train, self.recipe.task.depths(), self.progress)

    def _go_on_from(self, place: Path, resume: bool) -> None:
        if not resume:
            refuse_existing(self.out)
        checkpoint = load_checkpoint(place)
        if not checkpoint.recipe.same_curve(self.recipe):
            raise UserError(f"{place} was made by another recipe; resume with the settings it was started with")
        restore(checkpoint, self.model, self.optimizers)
        self.progress = checkpoint.progress

    def take_steps(self) -> None:
        """Take all steps that are left, with evaluations and checkpoints between them."""
        config, progress, first = self.recipe.train, self.progress, self.progress.step
        with (
            stop_requests() as stop,
            following(self.trackers if self.processes.is_first else {}, self.out, self.recipe, first + 1) as write,
            self._ready(first) as made,
        ):
            self.started = time.perf_counter() - progress.wall_time_s
            while progress.step < config.steps:
                measured = self._is_due(progress.step + 1, config.eval_every)
                coming = ["batch", "step", *["evaluation"] * measured, "checkpoint"]
                if progress.step > first and not self.limit.allows(*coming):
                    stop.requested = stop.requested or TIME_IS_UP
                ready = self._next_batch(made, stop)
                progress.step += 1
                saved = self._is_due(progress.step, config.checkpoint_every)
                with self.limit.timing("step" if progress.step > first + 1 else "first step"):  # blocks are compiled
                    newest = self._step(ready, watch=measured, settle=measured or saved)
                if newest is None:
                    continue
                if measured:
                    with self.limit.timing("evaluation"):
                        write(self._measure(newest))
                if self.curriculum.decides():
                    self.curriculum.decide()
                if saved:
                    self._save()
                if self.processes.is_first:
                    self.report(progress, newest.loss)

    def finish(self, commit: str) -> RunCard:
        """Evaluate, and leave the card."""
        late, _ = self.processes.agree(None if self.limit.allows("evaluation") else TIME_IS_UP, lacking=False)
        if late:
            raise Stopped(late, self.progress.step, self.recipe.train.steps)
        score = self._evaluate(self.recipe.sleep, generate=True)
        if self.adaptation is not None:
            score = self.adaptation.with_plain_text(score)
        together = {"processes": self.processes.world_size, "parallel": self.processes.parallel}
        card = make_card(self.recipe, self.model, self.progress, score, commit, **together)
        if self.processes.is_first:
            save_card(card, self.out / CARD_NAME)
        return card

    def _ready(self, first: int) -> contextlib.AbstractContextManager[Iterator[Any]]:
        """What every step from `first` on is taken with."""
        if self.adaptation is not None:
            return self.adaptation.plans(first, self.curriculum.deepest)
        config = self.recipe.train
        return ready_batches(
            self.recipe.task,
            config,
            self.recipe.sleep.window_size,
            first,
            self.processes.share(config.batch_size),
            self.device,
            self.curriculum.deepest,
        )

    def _is_due(self, step: int, every: int) -> bool:
        """True after every so many steps, and after the last one."""
        return step == self.recipe.train.steps or step % every == 0

    def _next_batch(self, made: Iterator[Any], stop: StopRequest) -> Any:
        """Raises Stopped, with all saved, if any process was asked to stop, and UserError if one has no batch."""
        with self.limit.timing("batch"):
            try:
                ready = None if stop.requested else next(made)
            except BrokenProcessPool:  # a process that makes batches has ended, as by a SIGTERM to the whole group
                ready = None
        # Now that each knows whether it has a batch: all take the step, or none.
        request, lacking = self.processes.agree(stop.requested, lacking=ready is None)
        if request:
            newest = self._settle()
            self._save()
            if newest is not None and self.processes.is_first:
                self.report(self.progress, newest.loss)
            raise Stopped(request, self.progress.step, self.recipe.train.steps)
        if ready is None or lacking is not None:
            whose = f"rank {lacking} of {self.processes.world_size}: " if self.processes.parallel else ""
            raise UserError(whose + KILLED)
        return ready

    def _step(self, ready: Any, *, watch: bool, settle: bool) -> Step | None:
        """Take a step; what it found, or None if that need not be known yet."""
        # Whatever draws in it, such as dropout: a function of seed, step and process, as the data are.
        if not self.recipe.train.cuda_graph:  # a recorded step draws nothing
            drawn = np.random.SeedSequence((self.recipe.train.seed, self.progress.step, self.processes.rank))
            torch.manual_seed(int(drawn.generate_state(1, np.uint32)[0]))
        try:
            self.steps.take(self.progress.step - 1, ready, watch=watch)
        except FloatingPointError as error:
            raise self._diverged(str(error)) from error
        self.progress.tokens += (
            self.recipe.train.batch_size * self.recipe.task.sequence_length
            if self.adaptation is None
            else self.adaptation.tokens(ready)
        )
        return self._settle() if self.steps.full or settle or self.curriculum.decides() else None

    def _settle(self) -> Step | None:
        """The newest of the steps that were taken and not asked about yet; all are noted."""
        try:
            found = self.steps.found()
        except FloatingPointError as error:
            raise self._diverged(str(error)) from error
        progress, losses = self.progress, sum(step.loss for step in found)
        progress.wall_time_s = time.perf_counter() - self.started
        progress.loss_sum += losses
        progress.stretch_loss_sum += losses
        progress.loss_count += len(found)
        return found[-1] if found else None

    def _measure(self, step: Step) -> dict[str, Any]:
        """Evaluate under the eviction that the newest step trained with, and add a point to the curve."""
        progress = self.progress
        score = self._evaluate(self.schedule.stage(progress.step - 1).sleep)
        progress.curve.append(
            {
                "step": progress.step,
                "tokens": progress.tokens,
                "wall_time_s": progress.wall_time_s,
                "train_loss": progress.loss_sum / progress.loss_count,
                "depth": self.curriculum.deepest(progress.step - 1),
                "gradient_norm": step.gradient_norm,
                "passes": step.passes.model_dump() if step.passes else None,
                "score": score.summary(),
            }
        )
        progress.loss_sum, progress.loss_count = 0.0, 0
        return progress.curve[-1]

    def _evaluate(self, sleep: SleepConfig, *, generate: bool = False) -> Score:
        """The score on held-out examples, whose batches the processes share out."""
        if self.adaptation is not None and not generate:
            return sum(self.processes.gather(self.adaptation.evaluate()), Score())

        def own_score(model: LanguageModel) -> Score:
            share, examples = (self.processes.rank, self.processes.world_size), self.recipe.train.eval_examples
            with uncompiled():
                return evaluate(
                    model, self.recipe.task, sleep, examples, generate=generate, device=self.device, share=share
                ).score

        return sum(self.processes.gather(self.parallel.run(own_score)), Score())

    def _save(self) -> None:
        if where := not_finite(self.model.named_parameters()):
            raise self._diverged(f"the parameter {where} is not finite")
        with self.limit.timing("checkpoint"):
            save_run(self.out, self.recipe, self.model, self.optimizers, self.progress, self.processes)
            if self.adaptation is not None and self.processes.is_first:
                self.adaptation.save(self.out / ADAPTER)

    def _diverged(self, where: str) -> UserError:
        return UserError(
            f"training diverged at step {self.progress.step} ({where}): {find_checkpoint(self.out)} keeps the last "
            f"good state, try {self._lower_lr()} and another folder"
        )

    def _lower_lr(self) -> str:
        group, optimizer = next(iter(self.recipe.optim.optimizers.items()))
        return f"a lower optim.{group}.lr than {optimizer.lr:g}"


def _adaptation(recipe: Recipe, model: LanguageModel, processes: Processes) -> Adaptation:
    from reverie.train.adapt import Adaptation  # transformers is an extra

    return Adaptation(recipe, cast(Any, model), processes)


def _take_weights(run: Path, recipe: Recipe, model: LanguageModel) -> None:
    """Begin with the weights of a run in another folder."""
    place = find_checkpoint(run)
    if place is None:
        raise UserError(f"train.init_from is {run}, but there is no checkpoint: give the folder of a run")
    checkpoint = load_checkpoint(place)
    models = [model.model_dump(exclude={"backend"}) for model in (checkpoint.recipe.model, recipe.model)]
    if models[0] != models[1]:
        raise UserError(
            f"train.init_from is {run}, whose model is not the one of this recipe: their [model] must agree"
        )
    checkpoint.restore_model(model)
