"""The plan of a session on a GPU: groups of runs of one recipe each, as a TOML file, checked before anything starts.

    name = "rule110"

    [[groups]]
    name = "t32"                                # folder and figure
    recipe = "rule110/paper-t32"                # a shipped recipe, or a .toml file beside the plan
    set = ["train.dtype=bfloat16"]              # overrides of all variants, as with reverie train --set
    variants = [{ name = "n1" }, { name = "n4", set = ["sleep.num_sleep_passes=4"] }]
    seconds = 1500                              # with steps = "fit": the same number of steps for all variants, such
    steps = "fit"                               # that training all of them takes about that long; or a number alone
    evaluations = 40                            # points of each curve; the recipe's eval_every if absent
    seeds = [0]

A variant may have `warm_start = "n1"`, or `"t8/n1"` of another group: it begins with the weights of that run, which
must stand before it in the plan. Every mistake is a `UserError` of one sentence.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from reverie.errors import UserError
from reverie.recipe import Recipe, changed, load_recipe
from reverie.recipe.errors import any_of, out_of_place, shown

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Variant(_Part):
    """One way in which the runs of a group differ."""

    name: Name
    set: tuple[str, ...] = ()
    warm_start: str | None = Field(
        default=None, description='"variant" or "group/variant" to begin with the weights of'
    )


class Group(_Part):
    """Runs of one recipe that are compared with each other."""

    name: Name
    recipe: str
    set: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = Field(min_length=1)
    steps: Annotated[int, Field(ge=1)] | Literal["fit"]
    seconds: float | None = Field(default=None, gt=0, description="of training and evaluation, all variants and seeds")
    evaluations: int | None = Field(default=None, ge=1, description="points of each curve")
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)

    @model_validator(mode="after")
    def _agrees(self) -> Group:
        if (self.steps == "fit") != (self.seconds is not None):
            raise ValueError('seconds belongs to steps = "fit", and to nothing else: give both, or a number of steps')
        _require_distinct("variants", [variant.name for variant in self.variants])
        _require_distinct("seeds", [str(seed) for seed in self.seeds])
        return self

    def source(self, variant: Variant) -> str | None:
        """ "group/variant" that a variant takes its first weights from."""
        start = variant.warm_start
        return start if start is None or "/" in start else f"{self.name}/{start}"


class Plan(_Part):
    """Groups in the order in which they run."""

    name: Name
    groups: tuple[Group, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Plan:
        _require_distinct("groups", [group.name for group in self.groups])
        before: list[str] = []
        for group in self.groups:
            for variant in group.variants:
                source = group.source(variant)
                if source is not None and source not in before:
                    raise ValueError(
                        f"warm_start of {group.name}/{variant.name} must name a run before it, "
                        f"{any_of(before) if before else 'but it is the first'}, got {shown(variant.warm_start)}"
                    )
                before.append(f"{group.name}/{variant.name}")
        return self


@dataclass(frozen=True)
class PlannedRun:
    """A run with all that decides its result; how it is computed is chosen on the machine (`ways.py`)."""

    group: str
    name: str  # "t32/n4-seed-0": also its folder
    recipe: Recipe
    source: str | None = None  # the run whose weights it begins with


@dataclass(frozen=True)
class LoadedPlan:
    """A plan whose recipes have been found to be right."""

    plan: Plan
    folder: Path  # that paths of recipes are relative to

    def variants(self, group: Group) -> dict[str, Recipe]:
        """By variant, the recipe with the group's first seed and, where steps are fitted, the recipe's own steps."""
        steps = None if group.steps == "fit" else group.steps
        return {variant.name: self._recipe(group, variant, group.seeds[0], steps) for variant in group.variants}

    def runs(self, group: Group, steps: int) -> list[PlannedRun]:
        """All runs of a group, seed by seed, with that many steps."""
        return [self._run(group, variant, seed, steps) for seed in group.seeds for variant in group.variants]

    def _run(self, group: Group, variant: Variant, seed: int, steps: int) -> PlannedRun:
        name, recipe = f"{group.name}/{variant.name}-seed-{seed}", self._recipe(group, variant, seed, steps)
        source = group.source(variant)
        if source is None:
            return PlannedRun(group.name, name, recipe)
        seeds = next(other.seeds for other in self.plan.groups if other.name == source.split("/")[0])
        source = f"{source}-seed-{seed if seed in seeds else seeds[0]}"
        # Relative to the state folder, where the child works: it may lie elsewhere in the next call.
        return PlannedRun(group.name, name, changed(recipe, train={"init_from": f"runs/{source}"}), source)

    def _recipe(self, group: Group, variant: Variant, seed: int, steps: int | None) -> Recipe:
        path = self.folder / group.recipe if group.recipe.endswith(".toml") else group.recipe
        overrides = [*group.set, *variant.set, f"train.seed={seed}"]
        if steps is not None:
            overrides.append(f"train.steps={steps}")
        try:
            recipe = load_recipe(path, overrides)
            if group.evaluations is not None:
                every = math.ceil(recipe.train.steps / group.evaluations)
                recipe = load_recipe(path, [*overrides, f"train.eval_every={every}"])
        except UserError as error:
            raise UserError(f"group {group.name}, variant {variant.name}: {error}") from None
        return recipe


def load_plan(path: Path) -> LoadedPlan:
    """Read a plan and every recipe in it.

    Raises UserError, in one sentence, for whatever is wrong with it.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        shipped = ", ".join(sorted(plan.stem for plan in (Path(__file__).parent / "plans").glob("*.toml")))
        raise UserError(f"there is no plan {path}; benchmarks/gpu/plans has {shipped}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    try:
        plan = Plan.model_validate(_with_tuples(content), strict=True)
    except ValidationError as error:
        raise UserError(f"{path}: {_sentence(error)}") from None
    loaded = LoadedPlan(plan, path.parent)
    for group in plan.groups:
        loaded.variants(group)
    return loaded


def _require_distinct(what: str, names: list[str]) -> None:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{what} must have different names, {shown(twice)} is there twice")


def _with_tuples(value: Any) -> Any:
    """TOML knows lists, strict validation wants tuples."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _sentence(error: ValidationError) -> str:
    """The first mistake, unknown keys before all others."""
    first = min(error.errors(), key=lambda details: details["type"] != "extra_forbidden")
    place = [part for part in first["loc"] if part not in _BRANCHES]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    got = f"got {shown(first['input'])}"
    if len(place) < len(first["loc"]):
        return f'{where} must be "fit" or an integer, at least 1, {got}'
    match first["type"]:
        case "extra_forbidden":
            known = list(_KINDS[sum(isinstance(part, int) for part in place)].model_fields)
            near = get_close_matches(str(place[-1]), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            return f"{where} is not a known key; {hint}"
        case "missing":
            return f"{where} is missing"
        case "value_error":
            return f"{where}: {first.get('ctx', {})['error']}".lstrip(": ")
        case "string_pattern_mismatch":
            return f"{where} must be of small letters, digits, dots and dashes, {got}"
    return out_of_place(where, [{**first, "loc": ()}])


_BRANCHES = ("int", "constrained-int", "literal['fit']")  # of `steps`, as pydantic calls them
_KINDS: tuple[type[_Part], ...] = (Plan, Group, Variant)  # by how many lists a key lies in
