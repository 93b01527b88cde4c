"""Tiny models that can be spoken to, trained for nothing: their answers are arbitrary, but depend on what they read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fake_cards import run_card, summary
from tiny_recipe import tiny_recipe

from reverie.model import LanguageModel
from reverie.recipe import Recipe, changed
from reverie.recipe.build import build_model
from reverie.results.card import save_card
from reverie.results.checkpoint import FILE_NAME, Progress
from reverie.results.run import CARD_NAME
from reverie.talk.sleeper import Sleeper, load_model
from reverie.train.checkpoint import save_checkpoint

TASKS: dict[str, dict[str, Any]] = {
    "rule110": {"name": "rule110", "num_states": 2, "width": 6, "rollout_steps": [1, 4]},
    "depo": {"name": "depo", "max_nodes": 5, "min_nodes": 3, "mini_vocab": 9, "max_hops": 3, "test_hops": [1, 2]},
    "words": {
        "name": "gsm_infinite",
        "worlds": ["wildlife"],
        "levels": ["medium"],
        "modes": ["forward"],
        "max_operations": 3,
        "length": [60, 90],
        "question_position": "last",
        "instruction": False,
        "max_value": 9,
        "tokenizer": "words",
        "num_questions": 3,
    },
}
TASKS["word"] = TASKS["words"] | {"num_questions": 1, "max_value": 1000}
FACTS = "The number of grown lynx in Heron Marsh equals 3. The number of grown hare in Gull Island equals 5."
QUESTION = "How many grown lynx does Heron Marsh have?"


def recipe_of(task: str, seed: int = 0, **sleep: Any) -> Recipe:
    """Windows of 8 tokens and two passes, if not said otherwise."""
    tiny = tiny_recipe(sleep={"window_size": 8, "num_sleep_passes": 2} | sleep, train={"seed": seed})
    data = tiny.model_dump(mode="json", exclude={"model": {"vocab_size"}, "task": True})
    return changed(Recipe.model_validate({**data, "task": TASKS[task]}))


def tiny_run(folder: Path, task: str = "words", seed: int = 0, *, untrained: bool = False, **sleep: Any) -> Path:
    """The folder of a run of which every weight matters, or with `untrained` of one that has not begun."""
    recipe = recipe_of(task, seed, **sleep)
    model = build_model(recipe.model, seed)
    model = model if untrained else disturbed(model, seed)
    folder.mkdir(parents=True)
    save_checkpoint(folder / FILE_NAME, recipe, model, [], Progress(curve=[]))
    save_card(run_card("sleep", 2, seed, summary({2: 0.5}, 0.1)), folder / CARD_NAME)
    return folder


def disturbed(model: LanguageModel, seed: int) -> LanguageModel:
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5
            parameter.add_(scale * torch.randn(parameter.shape, generator=random))
    return model


def tiny_sleeper(folder: Path, task: str = "words", **sleep: Any) -> Sleeper:
    return load_model(tiny_run(folder / task, task, **sleep))


def endless_sleeper(folder: Path) -> Sleeper:
    """Its answers end when they are as long as they may be."""
    sleeper = tiny_sleeper(folder, "depo")
    sleeper.language.end_ids = frozenset()
    return sleeper
