"""Which runs a comparison has: variants of a recipe, each with every number of passes and every seed."""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import NamedTuple

from reverie.errors import UserError
from reverie.recipe import Recipe, changed, load_recipe, override_value
from reverie.results.run import chance_of, model_kind
from reverie.results.settings import short_names, shown_value

_LONGEST = 40, 160  # letters of a value, and of all settings, in the name of a folder


@dataclass(frozen=True)
class Run:
    """One run of a comparison; `settings` are the varied keys and its values of them, as labels show them."""

    name: str
    recipe: Recipe
    out: Path
    settings: Mapping[str, str] = field(default_factory=dict)


class Variant(NamedTuple):
    """A recipe of a comparison, for all its seeds and numbers of passes."""

    recipe: Recipe
    settings: dict[str, str]


def load_variants(name: str | Path, overrides: Sequence[str], varied: Mapping[str, Sequence[str]]) -> list[Variant]:
    """A recipe with every combination of the values of some keys, which are written as those of overrides.

    Raises:
        UserError: one of them is wrong; the sentence names it.
    """
    variants = dict[tuple[str, ...], Variant]()
    for values in product(*varied.values()):
        settings = {key: shown_value(override_value(value)) for key, value in zip(varied, values, strict=True)}
        with _named(settings):
            own = [f"{key}={value}" for key, value in zip(varied, values, strict=True)]
            variants.setdefault(tuple(settings.values()), Variant(load_recipe(name, [*overrides, *own]), settings))
    return list(variants.values())


@contextlib.contextmanager
def _named(settings: Mapping[str, str]) -> Iterator[None]:
    """Mistakes in a variant, with its name."""
    try:
        yield
    except UserError as error:
        raise UserError(f"the variant {_written(settings)}: {error}" if settings else str(error)) from None


def _written(settings: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in settings.items())


def plan_variants(
    variants: Sequence[Variant], passes: Sequence[int] | None, seeds: Sequence[int], out: Path, *, transformer: bool
) -> list[Run]:
    """The runs of all variants, as `plan_runs` has those of each; with their own numbers of passes if none are given.

    Raises:
        UserError: as `plan_runs`, or their accuracies cannot stand in one figure.
    """
    _require_one_scale(variants)
    runs = list[Run]()
    for recipe, settings in variants:
        with _named(settings):
            own = passes or [recipe.sleep.num_sleep_passes]
            runs += plan_runs(recipe, own, seeds, out, transformer=transformer, settings=settings)
    return _longest_first(runs)


def _require_one_scale(variants: Sequence[Variant]) -> None:
    first, *others = variants
    for other in others:
        (name, depths, chance), its = _scale(first.recipe), _scale(other.recipe)
        labels = f"the variants {_written(first.settings)} and {_written(other.settings)}"
        if (name, depths, chance) != its:
            raise UserError(f"{labels} cannot be compared: their tasks differ in name, depths or chance")
        if first.recipe.train.metric != other.recipe.train.metric:
            raise UserError(f"{labels} cannot be compared: train.metric says how all runs of a comparison are scored")


def _scale(recipe: Recipe) -> tuple[object, ...]:
    return recipe.task.name, list(recipe.task.depths()), chance_of(recipe.task)


def plan_runs(
    recipe: Recipe,
    passes: Sequence[int],
    seeds: Sequence[int],
    out: Path,
    *,
    transformer: bool,
    settings: Mapping[str, str] | None = None,
) -> list[Run]:
    """Every number of passes with every seed, and the transformer baseline with every seed.

    The longest runs come first, so that no core is left waiting for one at the end.

    Raises:
        UserError: a number is out of range, or the recipe has no layers that could sleep.
    """
    settings = settings or {}
    if model_kind(recipe) == "transformer" and (not settings or len(set(passes)) > 1):
        raise UserError(
            f"{recipe.name} has attention layers alone, so the number of sleep passes changes nothing: there is "
            "nothing to compare"
        )
    if recipe.train.num_sleep_passes is not None and len(set(passes)) > 1:
        raise UserError(
            f"{recipe.name} draws its passes anew for every step, so runs with other passes would be the same one: "
            "give the one number to score it with"
        )
    runs = []
    for seed in dict.fromkeys(seeds):
        for n in dict.fromkeys(passes):
            runs.append(_run(changed(recipe, sleep={"num_sleep_passes": n}, train={"seed": seed}), settings, out))
        if transformer and model_kind(recipe) != "transformer":
            runs.append(_run(changed(_baseline(recipe), train={"seed": seed}), settings, out))
    return _longest_first(runs)


def _longest_first(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: -run.recipe.sleep.num_sleep_passes)


def _baseline(recipe: Recipe) -> Recipe:
    """The transformer: attention in all layers, and every step trains everything, there being no fast weights.

    Stages for fast weights alone are left out and the others take their steps: the eviction of such a stage is there to
    teach fast weights, and a transformer would lose those steps. If it is the last one it stays, for its eviction is
    the one the model is used with.
    """
    stages = recipe.train.stages
    kept = [stage for stage in stages[:-1] if stage.parameters == "all"] + list(stages[-1:])
    return changed(
        recipe,
        model={"layers": ["attn"] * len(recipe.hybrid.layers)},
        sleep={"num_sleep_passes": 1},
        train={"num_sleep_passes": None, "stages": [{**stage.model_dump(), "parameters": "all"} for stage in kept]},
    )


def _run(recipe: Recipe, settings: Mapping[str, str], out: Path) -> Run:
    kind = model_kind(recipe)
    name = kind if kind != "sleep" else f"sleep-{recipe.sleep.num_sleep_passes}"
    name = "-".join([name, *_in_a_path(settings), "seed", str(recipe.train.seed)])
    return Run(name, recipe, out / name, settings)


def _in_a_path(settings: Mapping[str, str]) -> list[str]:
    """Names and values for the name of a folder; those that do not fit in with a few digits of their hash."""

    def part(text: str, longest: int) -> str:
        plain = re.sub(r"[^A-Za-z0-9._+-]+", "_", text).strip("_")[:longest]
        return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"

    each, together = _LONGEST
    parts = [f"{name}-{part(settings[key], each)}" for key, name in short_names(settings).items()]
    return [part("-".join(parts), together)] if parts else []
