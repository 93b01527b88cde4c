"""Which way a group is computed, and how many steps its time is good for: by measurement, once, then written down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from child import Child, JobFailed
from plan import Group, LoadedPlan
from record import Budget, Log, Record
from ways import Way, backends_of, way_of, ways_of

from reverie.errors import UserError
from reverie.recipe import Recipe

WAYS_SHARE, WAYS_S = 0.4, 120.0  # of a call, at most, until the fastest so far is taken
WAY_S = 240.0  # for one way: compiling takes most of it
TIMING_S = 3.0
MARGIN = 0.95  # of a group's seconds: clocks drift
SAVED_BYTES_S = 2e8  # of a checkpoint, which is about three times as large as the weights


class Cost(NamedTuple):
    """Of one variant, in seconds."""

    step: float
    compiling: float  # and all else before the first step at full speed
    evaluation: float


class _TimeIsUp(Exception):
    """Of this call."""


class Chooser:
    """Measures by means of the child, and keeps what it finds in the record."""

    def __init__(self, loaded: LoadedPlan, record: Record, child: Child, log: Log, budget: Budget, state: Path) -> None:
        self._loaded, self._record, self._child, self._log = loaded, record, child, log
        self._budget, self._state = budget, state
        self._device = torch.device(record["machine"]["device"])

    def way(self, group: Group, *, timed: bool = True) -> Way | None:
        """The fastest that passes; None if none has passed yet, for lack of time or of a right one."""
        recipe = next(iter(self._loaded.variants(group).values()))
        found = self._record.setdefault("ways", {}).setdefault(_shape(recipe), {"group": group.name, "rows": []})
        first = "chosen" not in found
        if first or (timed and found.pop("open", False)):  # what had no time in one call may have some in the next
            complete = self._try_ways(recipe, found, timed)
            if first and not complete:
                found["open"] = True
            passed = [row for row in found["rows"] if row.get("seconds_per_step")]
            best = min(passed, key=lambda row: row["seconds_per_step"], default=None)
            if best is not None and found.get("chosen") != best["way"]:
                found["chosen"] = best["way"]
                self._record.save()
                self._log.say(f"{group.name}: fastest is {best['name']}")
                self._profile(recipe, Way(**best["way"]), found)
        return Way(**found["chosen"]) if "chosen" in found else None

    def steps(self, group: Group, way: Way) -> int | None:
        """Of every run of the group; None as long as not every variant has been timed that can be, in its final way."""
        known = self._record["groups"].setdefault(group.name, {})
        if "steps" not in known:
            steps = group.steps
            if steps == "fit":
                variants = self._loaded.variants(group)
                if self._record["ways"][_shape(next(iter(variants.values())))].get("open"):
                    return None
                try:
                    costs = {name: self._cost(group, name, recipe, way) for name, recipe in variants.items()}
                except _TimeIsUp:
                    return None
                measured = [cost for cost in costs.values() if cost is not None]
                if not measured:
                    return None
                steps = fitted_steps(group, measured, min(recipe.train.steps for recipe in variants.values()))
                known["costs"] = {name: cost and cost._asdict() for name, cost in costs.items()}
                self._log.say(f"{group.name}: {steps} steps for every variant fit into {group.seconds:g} s")
            known["steps"] = steps
            self._record.save()
        return int(known["steps"])

    def kept(self, group: Group, variant: str, way: Way) -> Way:
        """The way of one variant, which may keep less for its backward than the fastest does."""
        kept = self._record["groups"].get(group.name, {}).get("kept", {}).get(variant)
        return way if kept is None else replace(way, activation_checkpoint=kept)

    def ending(self, group: Group, variant: str) -> float:
        """Seconds that a run may take from when it is asked to stop: a step that is measured, another, and saving."""
        found = self._record["groups"].get(group.name, {}).get("speeds", {}).get(variant)
        if found is None:
            return 0.0
        saving = 3 * found.get("weights_bytes", 0) / SAVED_BYTES_S
        return found["evaluation_s"] + 2 * found["mean_seconds_per_step"] + saving

    def _passed_backends(self, recipe: Recipe) -> list[str | None]:
        if not hasattr(recipe.model, "backend"):
            return [None]
        return [name for name, found in self._record.get("kernels", {}).items() if found["passed"]]

    def _unchecked(self, recipe: Recipe, likeliest: str | None) -> bool:
        """Whether a backend that is likelier to be the fastest has not had the time for its check to end."""
        before = takewhile(lambda name: name != likeliest, backends_of(recipe))
        return any(name not in self._record.get("kernels", {}) for name in before)

    def _try_ways(self, recipe: Recipe, found: dict[str, Any], timed: bool) -> bool:
        """Add a row for each; False where there was not enough time for all of the likeliest backend."""
        ways = ways_of(recipe, self._device, self._passed_backends(recipe))
        likeliest = ways[0].backend if ways else None
        complete = not self._unchecked(recipe, likeliest)
        until = self._budget.elapsed + self._budget.share(WAYS_SHARE, WAYS_S)
        if timed:  # what a check alone has found gets its time now
            found["rows"] = [row for row in found["rows"] if not row["passed"] or row.get("seconds_per_step")]
        tried = {row["tried"] for row in found["rows"]}  # memory may have made another way of it
        truth = self._state / "check" / f"{_hash([_json(recipe), self._record['machine']['code']])}.safetensors"
        for way in ways:
            if way.name in tried:
                continue
            any_timed = any(row.get("seconds_per_step") for row in found["rows"])
            limit = min(WAY_S, (until - self._budget.elapsed) if any_timed else self._budget.left)
            if limit <= 0:
                self._log.say(f"{way.name}: not tried, there is no time left for it")
                complete = complete and way.backend != likeliest
                continue
            try:
                if not truth.is_file():
                    self._child.do("truth", limit=limit, recipe=_json(recipe), path=str(truth))
                row = self._row(recipe, way, truth, found["rows"], limit, timed)
            except JobFailed as failure:
                if failure.kind == "overdue" and limit < WAY_S:
                    self._log.say(f"{way.name}: not tried to the end, there was no time left for it")
                    complete = complete and way.backend != likeliest
                    continue
                row = {"why": str(failure)}
            row = {"way": asdict(way), "passed": False, **row}
            row = {"name": Way(**row["way"]).name, "tried": way.name, **row}
            found["rows"].append(row)
            self._record.save()
            self._log.say(f"{row['name']}: {_told(row)}")
        return complete

    def _row(
        self, recipe: Recipe, way: Way, truth: Path, rows: Sequence[dict], limit: float, timed: bool
    ) -> dict[str, Any]:
        """Check, and only then time; with less kept for the backward if memory runs out."""
        until = self._budget.elapsed + limit

        def left() -> float:
            return max(until - self._budget.elapsed, 0.0)

        try:
            if not way.cuda_graph:
                computed = _json(way.applied(recipe))
                checked = self._child.do("check_way", limit=left(), recipe=computed, path=str(truth))
            else:
                plain = _without_graph(way, rows)
                if plain is None:
                    return {"why": "without the graph it has not passed"}
                way = replace(plain, cuda_graph=True)
                computed = _json(way.applied(recipe))
                arguments = {"plain": _json(plain.applied(recipe)), "folder": str(self._state)}
                checked = self._child.do("check_graph", limit=left(), recipe=computed, **arguments)
            times = self._time(computed, left(), profile=False) if checked["passed"] and timed else {}
            return checked | {"way": asdict(way)} | times
        except UserError as error:
            return {"why": str(error)}
        except JobFailed as failure:
            if failure.kind != "memory" or way.smaller is None:
                raise
            self._log.say(f"{way.name}: out of memory, so {way.smaller.name}")
            return {"way": asdict(way.smaller)} | self._row(recipe, way.smaller, truth, rows, left(), timed)

    def _time(self, computed: dict, limit: float, *, profile: bool) -> dict[str, Any]:
        arguments = {"recipe": computed, "folder": str(self._state), "seconds": TIMING_S, "profile": profile}
        if self._device.type == "cpu":
            arguments["seconds"] = TIMING_S / 10
        return self._child.do("time_way", limit=limit, **arguments)

    def _profile(self, recipe: Recipe, way: Way, found: dict[str, Any]) -> None:
        limit = self._budget.share(0.15, 90.0)
        try:
            measured = self._time(_json(way.applied(recipe)), limit, profile=True)
        except JobFailed as failure:
            self._log.say(f"no profile: {failure}")
            return
        found["profile"] = {key: measured[key] for key in ("profile", "kernels")}
        self._record.save()

    def _cost(self, group: Group, variant: str, recipe: Recipe, way: Way) -> Cost | None:
        """Measured, in this call or an earlier one; None if it cannot be.

        Raises _TimeIsUp where another call may measure it.
        """
        known = self._record["groups"].setdefault(group.name, {})
        speeds, way = known.setdefault("speeds", {}), self.kept(group, variant, way)
        if variant not in speeds:
            computed, limit = _json(way.applied(recipe)), min(WAY_S, self._budget.left)
            try:
                times = self._time(computed, limit, profile=False)
                evaluation = self._child.do("time_evaluation", limit=max(self._budget.left, 0), recipe=computed)
            except JobFailed as failure:
                self._log.say(f"{group.name}, {variant}: its time could not be measured: {failure}")
                if failure.kind == "memory" and way.smaller is not None:
                    known.setdefault("kept", {})[variant] = way.smaller.activation_checkpoint
                    return self._cost(group, variant, recipe, way)
                if failure.kind == "overdue" and limit < WAY_S:
                    raise _TimeIsUp from None
                return None
            speeds[variant] = times | {"name": way.name, "evaluation_s": evaluation["seconds"], "way": asdict(way)}
            self._record.save()
            self._log.say(f"{group.name}, {variant}: {_told(times)}")
        found = speeds[variant]
        return Cost(found["mean_seconds_per_step"], found["startup_s"], found["evaluation_s"])


def fitted_steps(group: Group, costs: Sequence[Cost], most: int) -> int:
    """The number of steps that all variants and seeds can take in the group's seconds; at least 1, at most `most`."""
    assert group.seconds is not None
    points = group.evaluations or 0
    fixed = sum(cost.compiling + (points + 1) * cost.evaluation for cost in costs) * len(group.seeds)
    a_step = sum(cost.step for cost in costs) * len(group.seeds)
    return max(1, min(most, int((MARGIN * group.seconds - fixed) / a_step)))


def all_recipes(loaded: LoadedPlan) -> Iterable[Recipe]:
    """Of every group and variant."""
    return (recipe for group in loaded.plan.groups for recipe in loaded.variants(group).values())


def _without_graph(way: Way, rows: Sequence[dict[str, Any]]) -> Way | None:
    """The same kernels without the CUDA graph, as they have passed."""
    passed = (Way(**row["way"]) for row in rows if row["passed"])
    same = (way.backend, way.compile, False)
    return next((other for other in passed if (other.backend, other.compile, other.cuda_graph) == same), None)


def _shape(recipe: Recipe) -> str:
    """What a choice of the way holds for: sizes and number formats, not learning rates or lengths of a run."""
    plain = way_of(recipe)
    model = recipe.model.model_dump(mode="json") | {"backend": None}
    train = {key: getattr(recipe.train, key) for key in ("batch_size", "dtype", "bptt_passes", "bptt_windows")}
    sizes = [recipe.task.name, recipe.task.sequence_length, recipe.sleep.window_size, recipe.sleep.eviction]
    return _hash([model, train, sizes, plain.activation_checkpoint])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _json(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json")


def _told(row: dict[str, Any]) -> str:
    if "seconds_per_step" not in row:
        return "passed" if row.get("passed") else f"left out: {row['why']}"
    peak = f", {row['peak_gib']:.1f} GiB" if row.get("peak_gib") else ""
    return f"{1e3 * row['seconds_per_step']:.2f} ms a step, {row['tokens_per_s']:,.0f} tokens/s{peak}"
