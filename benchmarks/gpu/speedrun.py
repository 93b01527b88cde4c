"""Figures 2a and 2b (Rule 110) and the throughput figure, in 13 minutes of one H200 and calls of at most ten.

    python benchmarks/gpu/speedrun.py --out out --seconds 570
    python benchmarks/gpu/speedrun.py --out out --seconds 210

Each call goes on where the last one stopped, until everything is there: cards and figures in `--out`, runs below it.
The parts are `2a`, `2b` and `throughput`; `--only` names some of them.
"""

# ruff: noqa: E402

import argparse
import contextlib
import gc
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

BEGUN = time.monotonic()  # importing torch counts as well

import matplotlib
import throughput
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from reverie.cli.options import device_named
from reverie.errors import UserError
from reverie.files import write_atomic
from reverie.interrupts import Stopped
from reverie.recipe import Recipe, changed, load_recipe
from reverie.results.card import RunCard, depth_name, load_card
from reverie.results.checkpoint import Progress, find_checkpoint
from reverie.results.plots import save_figure
from reverie.results.provenance import commit_id, hardware
from reverie.results.run import CARD_NAME
from reverie.results.style import GREY, STYLE, look_of
from reverie.train.run import train

COMMON = ("train.dtype=bfloat16", "train.eval_examples=2048", "train.compile=true", "train.cuda_graph=true")
RESERVE_S = 20.0  # at the end of a call: the final evaluation, cards and figures
LEAST_S = 30.0  # a run is not begun with less
WARM_UP, TIMED_S = 30, 6.0  # steps; seconds


class Plan(NamedTuple):
    """A figure: runs of one recipe, each with other settings."""

    name: str
    title: str
    recipe: str
    runs: dict[str, tuple[str, ...]]
    evaluations: int
    settings: tuple[str, ...] = COMMON
    seconds: float | None = None  # of all runs together: as many steps as fit, the same for all; else the recipe's own


PLANS = (
    Plan(
        "2a",
        "Rule 110: the plain hybrid, by rollout steps t",
        "rule110/paper-depth",
        {f"t{t}": (f"task.rollout_steps={t}",) for t in (4, 8, 10, 12, 14, 16)},
        evaluations=16,
    ),
    Plan(
        "2b",
        "Rule 110 at t = 32, by sleep passes N",
        "rule110/paper-t32",
        {f"n{N}": (f"sleep.num_sleep_passes={N}",) for N in (1, 2, 3, 4)},
        evaluations=20,
        seconds=320,
    ),
)


class Later(Exception):
    """The time is up; the next call goes on."""


class _Enough(Exception):
    """The steps that were to be timed are done."""


class Speedrun:
    """Runs of figures and rows of throughput, as far as the time of a call goes; steps are kept in `speedrun.json`."""

    def __init__(self, out: Path, device: torch.device, deadline: float) -> None:
        self.out, self.device, self._deadline = out, device, deadline
        self._place = out / "speedrun.json"
        self.steps: dict[str, int] = json.loads(self._place.read_text()) if self._place.is_file() else {}

    @property
    def left(self) -> float:
        """Seconds for training."""
        return self._deadline - time.monotonic() - RESERVE_S

    def figure(self, plan: Plan) -> None:
        """Train what is missing of a figure, and draw what is there."""
        try:
            for run in plan.runs:
                self._run(plan, run)
        finally:
            cards = {run: card for run in plan.runs if (card := self._card(plan, run))}
            if cards:
                save_figure(curves(plan.title, cards), self.out / f"{plan.name}.png")

    def _card(self, plan: Plan, run: str) -> RunCard | None:
        place = self.out / f"{plan.name}-{run}.json"
        card = load_card(place) if place.is_file() else None
        return card if isinstance(card, RunCard) else None

    def _run(self, plan: Plan, run: str) -> None:
        """Train one run to its end. Raises Later if there is no time for it."""
        folder = self.out / "runs" / plan.name / run
        if self._card(plan, run) is not None:
            return
        if self.left < LEAST_S:
            raise Later
        recipe = self._recipe(plan, run)
        print(f"{plan.name} {run}: {recipe.train.steps} steps", flush=True)
        try:
            resume = find_checkpoint(folder) is not None
            train(recipe, folder, resume=resume, device=self.device, max_seconds=self.left)
            shutil.copyfile(folder / CARD_NAME, self.out / f"{plan.name}-{run}.json")
        except Stopped as stopped:
            print(f"{plan.name} {run}: {stopped}", flush=True)
            raise Later from None
        finally:
            let_go()

    def _recipe(self, plan: Plan, run: str) -> Recipe:
        recipe = load_recipe(plan.recipe, [*plan.settings, *plan.runs[run]])
        steps = recipe.train.steps
        if plan.seconds is not None:
            if plan.name not in self.steps:
                self.steps[plan.name] = self._fitting_steps(plan)
                write_atomic(self._place, json.dumps(self.steps).encode())
            steps = min(steps, self.steps[plan.name])
        every = max(1, steps // plan.evaluations)
        return changed(recipe, train={"steps": steps, "eval_every": every, "checkpoint_every": 5 * every})

    def _fitting_steps(self, plan: Plan) -> int:
        """Steps that all runs can take in `plan.seconds` together, by the time of the one with the most passes."""
        recipes = [load_recipe(plan.recipe, [*plan.settings, *settings]) for settings in plan.runs.values()]
        endless = changed(recipes[-1], train={"steps": 10**7, "eval_every": 10**7, "checkpoint_every": 10**7})
        marks: list[tuple[int, float]] = []

        def report(progress: Progress, loss: float) -> None:
            if progress.step >= WARM_UP:
                marks.append((progress.step, time.monotonic()))
                if marks[-1][1] - marks[0][1] > TIMED_S:
                    raise _Enough

        folder = self.out / "runs" / "timed"
        with contextlib.suppress(_Enough):
            train(endless, folder, device=self.device, report=report)
        shutil.rmtree(folder)
        let_go()
        a_step = (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0])
        passes = [recipe.sleep.num_sleep_passes for recipe in recipes]
        print(f"{plan.name}, N = {passes[-1]}: {1e3 * a_step:.1f} ms a step", flush=True)
        assert plan.seconds is not None
        return max(1, int(plan.seconds / (a_step * sum(passes) / passes[-1])))

    def throughput(self, study: throughput.Study) -> None:
        """Measure the ways that are missing in the card, one by one. Raises Later if there is no time for one."""
        place = self.out / "throughput.json"
        card: dict[str, Any] = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {"rows": {}}
        missing = [way for way in throughput.WAYS if way.name not in card["rows"]]
        if not missing:
            return
        if self.left < LEAST_S:
            raise Later
        trainer, longest = throughput.Trainer(study, self.device), 0.0
        card |= {"kind": "throughput", "commit": commit_id(), "hardware": hardware().model_dump(), "text": study.text}
        card |= {"window": study.window, "texts": study.texts, "model": study.model.model_dump(mode="json")}
        card["parameters"] = sum(p.numel() for p in trainer.model.parameters())
        for way in missing:
            if self.left < longest:
                raise Later
            begun = time.monotonic()
            card["rows"][way.name] = throughput.measure(trainer, way)
            card["wrong"] = throughput.disagreement(card["rows"])
            write_atomic(place, (json.dumps(card, indent=1) + "\n").encode())
            save_figure(throughput.figure(card), place.with_suffix(".png"))
            print(f"throughput, {way.name}: {card['rows'][way.name]}", flush=True)
            longest = max(longest, time.monotonic() - begun)
        if card["wrong"]:
            raise UserError(f"two ways that are one function differ: {card['wrong']}")


def curves(title: str, cards: Mapping[str, RunCard]) -> Figure:
    """Draw the curve of each run, labelled with what tells it from the others: its depth, or its number of passes."""
    several = len({card.depths[0] for card in cards.values()}) > 1
    ordered = sorted(cards.values(), key=lambda card: (float(card.depths[0]), card.num_sleep_passes))
    with matplotlib.rc_context(STYLE):
        drawing = Figure(figsize=(5.6, 3.6), layout="constrained")
        axes = drawing.subplots()
        for i, card in enumerate(ordered):
            colour = matplotlib.colormaps["viridis"](i / len(ordered)) if several else look_of(card.num_sleep_passes)[0]
            label = f"{depth_name(card.recipe)} = {card.depths[0]}" if several else card.label
            tokens = [point.tokens / 1e6 for point in card.curve]
            axes.plot(tokens, [point.score["exact_accuracy"] for point in card.curve], color=colour, label=label)
        guesses = [card.chance.exact for card in ordered]
        axes.axhspan(min(guesses), max(guesses) + 0.002, color=GREY, alpha=0.4, linewidth=0, label="guessing")
        axes.set_title(title)
        axes.set_xlabel("million training tokens")
        axes.set_ylabel("exact accuracy (all labels right)")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.legend()
    return drawing


def let_go() -> None:
    """Free the memory of a run, and what was compiled for its model; the compiler's files stay."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None, begun: float | None = None) -> int:
    """Return the exit code: 0 also where the next call must go on. The seconds count from `begun`, or from now."""
    parts = [*(plan.name for plan in PLANS), "throughput"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of runs, cards and figures")
    parser.add_argument("--seconds", type=float, default=570, help="of this call, everything included")
    parser.add_argument("--only", default=",".join(parts), help="parts, such as 2a,throughput; all if absent")
    given = parser.parse_args(arguments)
    deadline = (time.monotonic() if begun is None else begun) + given.seconds
    try:
        if unknown := sorted(set(given.only.split(",")) - set(parts)):
            raise UserError(f"--only takes {', '.join(parts)}, got {unknown[0]!r}")
        speedrun = Speedrun(given.out, device_named("cuda"), deadline)
        for plan in PLANS:
            if plan.name in given.only.split(","):
                speedrun.figure(plan)
        if "throughput" in given.only.split(","):
            speedrun.throughput(throughput.Study(throughput.ouro()))
    except Later:
        print(f"time is up: the same command goes on from {given.out}")
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"done: cards and figures are in {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(begun=BEGUN))
