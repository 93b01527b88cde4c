"""One call of a session: the machine, its ceilings, the kernels, then each group's way, steps and runs, then results.

Every stage keeps what it finds in the state folder, so that the next call goes on behind it; one that fails is noted,
and the others go on without it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import export
import reports
from child import Child, JobFailed
from choice import Chooser, all_recipes
from plan import Group, LoadedPlan, PlannedRun
from record import GRACE_S, LOG_NAME, RECORD_NAME, Budget, Log, Record
from training import OTHER_SETTINGS, finished
from ways import Way, backends_of

from reverie.cli.progress import RunDisplay
from reverie.errors import UserError
from reverie.interrupts import sigterm_interrupts
from reverie.results.checkpoint import FILE_NAME, checkpoint_progress
from reverie.train.worker import Event

Result = TypeVar("Result")
LEAST_S = 1.0  # less is not worth starting a run for
KERNELS_S = 150.0  # for all checks of one backend, most of it compiling
DIVERGED = "training diverged"  # as reverie.train says it: no other way of computing will help


class Session:
    """A plan, the folder that it lives in, and one call's time."""

    def __init__(self, loaded: LoadedPlan, state: Path, device: str, budget: Budget, paths: list[str]) -> None:
        state.mkdir(parents=True, exist_ok=True)
        state = state.resolve()  # the child works there
        self.loaded, self.state, self.budget = loaded, state, budget
        self.log = Log(state / LOG_NAME, budget)
        self.record = Record(state / RECORD_NAME, loaded.plan.name)
        self.child = Child(device, state, _environment(state, paths))

    def run(self, out: Path, limits: export.Limits, *, check_only: bool) -> None:
        """Everything; whatever happens, the results of what was done are written, and the child is gone."""
        plan = self.loaded.plan
        self.log.say(f"plan {plan.name}, {len(plan.groups)} groups, call {len(self.record['calls']) + 1}")
        self.record.begin_call(self.budget.seconds)
        try:
            with sigterm_interrupts():
                self._stages(check_only)
        except KeyboardInterrupt:
            self.log.say("interrupted: what is done is written now")
        finally:
            self.child.close()
            self._results(out, limits)

    def _stages(self, check_only: bool) -> None:
        try:
            found = self.child.do("describe", limit=self.budget.left)
        except JobFailed as failure:
            self.log.say(f"nothing can be computed: {failure}")
            return
        self.record.note_machine(found["machine"])
        self.log.say(reports.machine_line(self.record["machine"]))
        if "ceilings" not in self.record:
            self._stage("ceilings", self._ceilings)
        self._stage("kernels", self._kernels)
        chooser = Chooser(self.loaded, self.record, self.child, self.log, self.budget, self.state)
        for group in self.loaded.plan.groups:
            work = partial(chooser.way, group, timed=False) if check_only else partial(self._group, group, chooser)
            if self._stage(group.name, work) is False:
                return

    def _stage(self, name: str, work: Callable[[], Result]) -> Result | None:
        """What it returns; None where it fails in a way that nobody foresaw, which the others must not suffer from."""
        try:
            return work()
        except Exception as error:
            self.log.say(f"{name}: {type(error).__name__}: {error}")
            return None

    def _ceilings(self) -> None:
        try:
            found = self.child.do("ceilings", limit=self.budget.share(0.15, 90.0))
        except JobFailed as failure:
            self.log.say(f"no ceilings: {failure}")
            return
        self.record["ceilings"] = {key: value for key, value in found.items() if key != "job_s"}
        self.record.save()
        self.log.say(reports.ceilings_line(self.record["ceilings"]))

    def _kernels(self) -> None:
        """Every backend by itself: one that takes the process with it takes no other one's result."""
        known = self.record.setdefault("kernels", {})
        recipes = [recipe for recipe in all_recipes(self.loaded) if hasattr(recipe.model, "backend")]
        for backend in dict.fromkeys(name for recipe in recipes for name in backends_of(recipe) if name):
            if backend in known:
                continue
            contents = [recipe.model_dump(mode="json") for recipe in recipes]
            try:
                found = self.child.do(
                    "check_kernels", limit=self.budget.share(0.3, KERNELS_S), backend=backend, recipes=contents
                )
            except JobFailed as failure:
                if failure.kind == "overdue":
                    self.log.say(f"kernels {backend}: not checked to the end, there was no time left")
                    continue
                found = {"backend": backend, "passed": False, "why": str(failure), "rows": []}
            known[backend] = found
            self.record.save()
            self.log.say(f"kernels {backend}: {reports.kernels_line(found)}")

    def _group(self, group: Group, chooser: Chooser) -> bool:
        """Train what is not trained yet; False when the time is up."""
        way = chooser.way(group)
        if way is None:
            self.log.say(f"{group.name}: no way to compute it has passed")
            return self.budget.left > LEAST_S
        steps = chooser.steps(group, way)
        if steps is None:
            self.log.say(
                f"{group.name}: the number of steps is not known yet, not every way and variant has been timed"
            )
            return self.budget.left > LEAST_S
        for run in self.loaded.runs(group, steps):
            variant = run.name.removeprefix(f"{group.name}/").rsplit("-seed-", 1)[0]
            if not self._run(run, chooser.kept(group, variant, way), chooser.ending(group, variant)):
                return False
        return True

    def _run(self, run: PlannedRun, way: Way, ending: float) -> bool:
        """One run, as far as it gets, whose end takes up to so many seconds; False when the time is up."""
        out = self.state / "runs" / run.name
        known = self.record["runs"].get(run.name, {})
        try:
            if finished(run.recipe, out) is not None:
                self.record.note_run(run.name, state="finished")
                return True
        except UserError as error:
            self._fail(run, str(error))
            return True
        if known.get("diverged"):
            return True
        if run.source is not None and self.record["runs"].get(run.source, {}).get("state") != "finished":
            self.log.say(f"{run.name}: waits for the weights of {run.source}, which has not finished")
            return True
        display = RunDisplay(self.log.console)
        while self.budget.left - ending > LEAST_S:
            self.record.note_run(run.name, state="begun", way=way.name, steps=run.recipe.train.steps)
            try:
                done = self._train(run, way, out, display, ending)
            except UserError as error:  # of a way that the recipe does not take
                failure = JobFailed("refused", str(error))
            except JobFailed as error:
                failure = error
            else:
                self.record.note_run(run.name, state="finished", **done)
                self.log.say(f"{run.name}: done, {done['steps']} steps in {done['wall_time_s']:.1f} s")
                return True
            if failure.kind in ("stopped", "overdue"):
                self._pause(run, out, str(failure))
                return False
            other = self._other_way(run, way, failure)
            if other is None:
                return True
            way = other
        self._pause(run, out, "there was no time left")
        return False

    def _train(self, run: PlannedRun, way: Way, out: Path, display: RunDisplay, ending: float) -> dict[str, Any]:
        """It is asked to stop so early that it should end in time, and is killed only long after that."""
        seconds = self.budget.left
        return self.child.do(
            "run",
            limit=seconds + ending + GRACE_S,
            on_event=lambda event: display.update(run.name, Event(**event)),
            recipe=way.applied(run.recipe).model_dump(mode="json"),
            out=str(out),
            until=time.time() + seconds - ending,  # the process may have to start first
        )

    def _other_way(self, run: PlannedRun, way: Way, failure: JobFailed) -> Way | None:
        """What to try next, noted beside the run's card; None where nothing would help."""
        if failure.kind == "memory":
            other = way.smaller
        elif failure.kind == "died" or any(reason in str(failure) for reason in (DIVERGED, OTHER_SETTINGS)):
            other = None
        else:
            other = way.simpler
        if other is None:
            self.record.note_run(run.name, diverged=str(failure).startswith(DIVERGED))
            self._fail(run, str(failure))
        else:
            self.record.add_note(run.name, f"{way.name} failed ({failure}), so {other.name}")
            self.log.say(f"{run.name}: {failure}; now {other.name}")
        return other

    def _pause(self, run: PlannedRun, out: Path, why: str) -> None:
        step = checkpoint_progress(out / FILE_NAME).step if (out / FILE_NAME).is_file() else 0
        self.record.note_run(run.name, state="unfinished", step=step, steps=run.recipe.train.steps)
        self.log.say(f"{run.name}: {step} of {run.recipe.train.steps} steps are saved ({why}); the next call goes on")

    def _fail(self, run: PlannedRun, why: str) -> None:
        self.record.note_run(run.name, state="failed")
        self.record.add_note(run.name, why)
        self.log.say(f"{run.name}: failed: {why}")

    def _results(self, out: Path, limits: export.Limits) -> None:
        self._stage("cards and figures", lambda: reports.write(self.loaded, self.state, self.record, self.log))
        self._stage("parts of the state", lambda: export.write(self.state, out, limits, self.record, self.log))


def _environment(state: Path, paths: list[str]) -> dict[str, str]:
    """Of the child: where to import from, and caches of compiled code that outlive it."""
    inherited = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(state / "cache" / "inductor"),
        "TRITON_CACHE_DIR": str(state / "cache" / "triton"),
        "OMP_WAIT_POLICY": "PASSIVE",
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, *inherited]),
        "PYTHONUNBUFFERED": "1",
    }
