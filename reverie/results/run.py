"""A run on disk: its model ready to use, its result card, and its checkpoint evaluated again."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import torch

from reverie.errors import UserError
from reverie.model import LanguageModel, count_parameters
from reverie.recipe import Recipe, changed
from reverie.recipe.build import build_model
from reverie.results.card import Chance, CurvePoint, ModelKind, RunCard
from reverie.results.checkpoint import Checkpoint, Progress, find_checkpoint, load_checkpoint
from reverie.results.evaluate import evaluate
from reverie.results.provenance import commit_id, hardware
from reverie.tasks import Score, Task

CARD_NAME = "card.json"


def load_run(run: Path) -> Checkpoint:
    """The newest checkpoint in the folder of a run; raises UserError if there is none, or it cannot be read."""
    place = find_checkpoint(run)
    if place is None:
        raise UserError(f"there is no run at {run}: give the folder that reverie train wrote, such as runs/depo/nano")
    return load_checkpoint(place)


def trained_model(checkpoint: Checkpoint, device: torch.device | str = "cpu") -> LanguageModel:
    """The model of a checkpoint's recipe, with its weights."""
    model = build_model(checkpoint.recipe.model, checkpoint.recipe.train.seed).to(device)
    checkpoint.restore_model(model)
    return model


def evaluate_run(
    run: Path,
    *,
    num_sleep_passes: int | None = None,
    num_examples: int | None = None,
    device: torch.device | str = "cpu",
) -> RunCard:
    """The card of a run whose checkpoint is evaluated again; passes and examples are the recipe's if absent.

    Raises:
        UserError: there is no run, or its checkpoint cannot be read.
    """
    checkpoint = load_run(run)
    recipe = checkpoint.recipe
    if num_sleep_passes is not None:
        recipe = changed(recipe, sleep={"num_sleep_passes": num_sleep_passes})
    model = trained_model(checkpoint, device)
    examples = num_examples or recipe.train.eval_examples
    found = evaluate(model, recipe.task, recipe.sleep, examples, generate=True, device=device)
    return make_card(recipe, model, checkpoint.progress, found.score, commit_id())


def model_kind(recipe: Recipe) -> ModelKind:
    """The kind of model that a recipe describes: "transformer", "hybrid" or "sleep"."""
    if not recipe.model.has_fast_weights:
        return "transformer"
    one_pass = recipe.sleep.num_sleep_passes == 1 and recipe.train.num_sleep_passes is None
    return "hybrid" if one_pass else "sleep"


def make_card(
    recipe: Recipe,
    model: LanguageModel,
    progress: Progress,
    score: Score,
    commit: str,
    *,
    processes: int = 1,
    parallel: Literal["ddp", "fsdp"] | None = None,
) -> RunCard:
    """The result card of a run that so many processes have trained together."""
    return RunCard(
        name=recipe.name,
        model=model_kind(recipe),
        num_sleep_passes=recipe.sleep.num_sleep_passes,
        seed=recipe.train.seed,
        recipe=recipe.model_dump(mode="json"),
        commit=commit,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware=hardware(),
        processes=processes,
        parallel=parallel,
        wall_time_s=progress.wall_time_s,
        tokens=progress.tokens,
        steps=progress.step,
        parameters=count_parameters(model),
        score=score.summary(),
        chance=chance_of(recipe.task),
        curve=[CurvePoint.model_validate(point) for point in progress.curve],
    )


def chance_of(task: Task) -> Chance:
    """The chance of a task, as cards hold it."""
    return Chance(by_depth={str(depth): p for depth, p in task.chance().items()}, exact=task.chance_exact())
