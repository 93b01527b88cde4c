"""The controls, and one cell of them: a task, a control and a seed, in a folder of its own with its own card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

import torch
from pretrained_recall import Forgetful

from controls.models import LastPassFromFirst, LoopedAwake, OtherPasses
from reverie.errors import UserError
from reverie.model import HybridConfig, LanguageModel, SleepingModel
from reverie.recipe import Recipe, changed
from reverie.recipe.build import build_model
from reverie.results.card import RunCard, save_card
from reverie.results.checkpoint import FILE_NAME, find_checkpoint, load_checkpoint
from reverie.results.evaluate import evaluate
from reverie.results.provenance import commit_id
from reverie.results.run import CARD_NAME, make_card
from reverie.sleep import SleepConfig
from reverie.train import run as training
from reverie.train.worker import finished

PASSES = 4  # of the sleep that the controls stand beside
SLEEP = "n4"  # its name among them

Report = Callable[[str, int, int, float], None]
"""Called with the name of a cell, its steps so far and in all, and the newest loss."""


class Control(NamedTuple):
    """What is trained, and how it is tested."""

    label: str
    changes: Callable[[Recipe], Mapping[str, Any]]  # sections of the task's recipe
    model: type[OtherPasses] | None = None  # trained, or only tested if `trained_as` says what is; a hybrid if None
    trained_as: str | None = None  # the control whose trained model is tested; None: one of its own
    zeroed: bool = False  # fast weights are zero where a window begins
    as_much: Literal["time", "operations"] | None = None  # as N = 4, by more steps


def _asleep(passes: int) -> Callable[[Recipe], Mapping[str, Any]]:
    return lambda recipe: {"sleep": {"num_sleep_passes": passes}}


def _deep(recipe: Recipe) -> Mapping[str, Any]:
    return {"sleep": {"num_sleep_passes": 1}, "model": {"layers": [*recipe.hybrid.layers] * PASSES}}


def _full_context(recipe: Recipe) -> Mapping[str, Any]:
    return {
        "sleep": {"num_sleep_passes": 1, "window_size": recipe.task.sequence_length},
        "model": {"layers": ["attn"] * len(recipe.hybrid.layers)},
    }


CONTROLS = {
    "n1": Control("N = 1", _asleep(1)),
    "n2": Control("N = 2", _asleep(2)),
    SLEEP: Control(f"N = {PASSES}", _asleep(PASSES)),
    "deep": Control(f"N = 1, {PASSES} × the blocks", _deep),
    "awake": Control(f"{PASSES} passes awake", _asleep(1), LoopedAwake),
    "from-first": Control("last pass from pass 1's fast weights", _asleep(1), LastPassFromFirst),
    "from-first-test": Control(f"N = {PASSES}, in the test from pass 1's", _asleep(1), LastPassFromFirst, SLEEP),
    "full-context": Control("transformer, nothing evicted", _full_context),
    "zeroed": Control(f"N = {PASSES}, zeroed in the test", _asleep(PASSES), None, SLEEP, zeroed=True),
    "n1-time": Control(f"N = 1, the time of N = {PASSES}", _asleep(1), as_much="time"),
    "n1-operations": Control(f"N = 1, the FLOPs of N = {PASSES}", _asleep(1), as_much="operations"),
}


class Cell(NamedTuple):
    """One control with one seed, by the recipe that trains it."""

    name: str  # of the control
    recipe: Recipe
    out: Path

    @property
    def control(self) -> Control:
        return CONTROLS[self.name]


def check(recipe: Recipe) -> None:
    """Raises UserError for a recipe that the controls are not made for."""
    plain = recipe.hybrid.has_fast_weights and recipe.hybrid.injection == "none"
    sleep, train = recipe.sleep, recipe.train
    if not plain or sleep.eviction != "hard" or sleep.looped_blocks or sleep.bidirectional_sleep:
        raise UserError(
            f"recipe {recipe.name} cannot have controls: they are for hybrids that loop all blocks, inject nothing and "
            "keep fast weights alone"
        )
    if train.num_sleep_passes is not None or train.stages or train.bptt_passes is not None:
        raise UserError(f"recipe {recipe.name} cannot have controls: its steps differ in passes, stages or gradients")
    if recipe.task.answer_is_last:
        raise UserError(f"recipe {recipe.name} cannot have controls: answers to its task are written token by token")


def cell_of(recipe: Recipe, name: str, seed: int, runs: Path, steps: Callable[[str], int]) -> Cell:
    """The cell of a control, whose folder lies in `runs`.

    Args:
        steps: given "time" or "operations", steps of N = 1 that take as much as those of N = 4.
    """
    control = CONTROLS[name]
    train: dict[str, Any] = {"seed": seed} | ({"steps": steps(control.as_much)} if control.as_much else {})
    own = changed(recipe, **{**control.changes(recipe), "train": train})
    own = own.model_copy(update={"name": f"{recipe.name}, {control.label}"})
    return Cell(name, own, runs / recipe.name / name / f"seed-{seed}")


def build(control: Control, config: HybridConfig, seed: int) -> LanguageModel:
    """The model that a control trains, or tests; where it has the parameters of a hybrid, it starts with the same."""
    plain = build_model(config, seed)
    if control.model is None:
        return plain
    with torch.random.fork_rng(devices=[]):
        model = control.model(config, PASSES)
    model.load_state_dict(plain.state_dict())
    return model


def as_tested(control: Control, model: LanguageModel) -> SleepingModel:
    return Forgetful(model) if control.zeroed else model


def run(cell: Cell, trained: Callable[[str], Cell], report: Report = lambda name, step, steps, loss: None) -> RunCard:
    """The card of a cell, which is run if it is not there yet.

    Args:
        trained: gives the cell of another control with the same seed, whose model this one may test.

    Raises:
        UserError: its folder holds another run, or training diverges.
        Stopped: a signal came; what was done is saved.
    """
    if (card := finished(cell.recipe, cell.out)) is not None:
        return card
    if cell.control.trained_as is not None:
        other = trained(cell.control.trained_as)
        run(other, trained, report)
        card = _tested(cell, other)
    else:
        card = _trained(cell, report)
    save_card(card.model_copy(update={"settings": {"control": cell.control.label}}), cell.out / CARD_NAME)
    return run(cell, trained, report)  # as it is in the file, where numbers are rounded


def _trained(cell: Cell, report: Report) -> RunCard:
    def build_own(config: Any, seed: int) -> LanguageModel:
        return build(cell.control, config, seed)

    seed = cell.recipe.train.seed
    with mock.patch.object(training, "build_model", build_own):
        return training.train(
            cell.recipe,
            cell.out,
            resume=find_checkpoint(cell.out) is not None,
            report=lambda progress, loss: report(
                f"{cell.recipe.name}, seed {seed}", progress.step, cell.recipe.train.steps, loss
            ),
        )


@torch.no_grad()
def _tested(cell: Cell, other: Cell) -> RunCard:
    """The card of another cell's model, tested as this control is."""
    checkpoint, recipe = load_checkpoint(other.out / FILE_NAME), cell.recipe
    model = build(cell.control, recipe.hybrid, recipe.train.seed)
    checkpoint.restore_model(model)
    sleep: SleepConfig = recipe.sleep
    found = evaluate(as_tested(cell.control, model), recipe.task, sleep, recipe.train.eval_examples)
    return make_card(recipe, model, checkpoint.progress, found.score, commit_id())
