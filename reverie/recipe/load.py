"""Recipes from files: a TOML file, the bases it builds on, and overrides, checked into one frozen `Recipe`.

A recipe may build on another one: with `base = "depo/base"` (a shipped recipe) or `base = "my.toml"` (a file beside it)
tables merge key by key, and the recipe's own value wins. Every mistake is a `UserError` of one sentence.
"""

import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reverie.errors import UserError, plain
from reverie.files import text_of
from reverie.named import OutsideError, look_beside
from reverie.recipe.adapt import AdaptConfig, LossConfig, StartConfig
from reverie.recipe.errors import any_of, sentence, shown, user_error
from reverie.recipe.optim import ready_to_merge, with_present_optimizers
from reverie.recipe.random_passes import RandomPasses
from reverie.recipe.schema import MODELS, BySuccess, Recipe, StageConfig, kind_of_section, with_present_names
from reverie.tasks import find_task

_PACKAGE = Path(__file__).parent.parent
# A wheel holds the recipes inside the package (setup.py), a checkout beside it.
_ROOT = _PACKAGE / "recipes" if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent / "recipes"

_SECTIONS = [field for field in Recipe.model_fields if field != "name"]


def list_recipes() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.relative_to(_ROOT).with_suffix("").as_posix() for path in _ROOT.rglob("*.toml"))


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name ("depo/nano") or any recipe by the path of its .toml file.

    The recipe is named after its file. Modules that it names, as in `task.name = "my_module:MyTask"`, are looked for
    beside a .toml file too.

    Args:
        overrides: "section.key=value", applied in order; the value is TOML, or else taken as a string.

    Raises UserError, in one sentence, for anything that is wrong with them.
    """
    path = _find(str(name), Path(), named_by="")
    if str(name).endswith(".toml"):
        look_beside(path)
    try:
        data = _read_with_bases(path)
        for override in overrides:
            data = _merge_recipes(data, _with_present_names(_parse_override(override)))
        return _validate(_name_of(path), data)
    except RecursionError:
        raise UserError(f"{name}, or an override, has tables or lists nested too deeply for a recipe") from None


def recipe_again(dumped: str | Mapping[str, Any]) -> Recipe:
    """The recipe that was dumped, as JSON or as its values.

    Raises:
        UserError: something that it names from outside the package, or a package that it needs, is not here.
        ValidationError: it is none of this version.
    """
    try:
        return Recipe.model_validate_json(dumped) if isinstance(dumped, str) else Recipe.model_validate(dumped)
    except ValidationError as error:
        raise user_error(error) or _not_registered(error) or error from None


def _not_registered(error: ValidationError) -> UserError | None:
    """The sentence for a mixer, rule or injection of a name that somebody has registered elsewhere."""
    for details in error.errors():
        named = {"layers", "kind", "update_rule", "injection"} & {str(part) for part in details["loc"]}
        if details["type"] == "literal_error" and named and isinstance(details["input"], str):
            name = details["input"]
            return OutsideError(
                f"model.{min(named)} has {shown(name)}, which is not registered here: register it first"
            )
    return None


def changed(recipe: Recipe, **sections: Mapping[str, Any]) -> Recipe:
    """The recipe with other values in some sections, checked as those of a file are.

    Raises UserError, in one sentence, for a value that is wrong.
    """
    data = recipe.model_dump(mode="json", exclude={"name": True, "model": {"vocab_size"}})  # the task decides it
    return _validate(recipe.name, _merge_recipes(data, _with_present_names(sections)))


def _find(name: str, folder: Path, named_by: str) -> Path:
    """The file of a shipped recipe, or of a path relative to `folder`."""
    shipped, is_path = list_recipes(), name.endswith(".toml")
    path = folder / name if is_path else _ROOT / f"{name}.toml"
    if path.is_file() if is_path else name in shipped:
        return path
    near = get_close_matches(name.removesuffix(".toml"), shipped, n=3, cutoff=0)
    hint = f"did you mean {any_of(near)}, or the path of a .toml file?"
    raise UserError(f"there is no recipe {path if is_path else name}{named_by}; {hint}")


def _name_of(path: Path) -> str:
    path = path.resolve().with_suffix("")
    return path.relative_to(_ROOT.resolve()).as_posix() if path.is_relative_to(_ROOT.resolve()) else path.stem


def _read_with_bases(path: Path) -> dict[str, Any]:
    """The tables of a recipe merged over those of its base, of that one's base and so on."""
    chain, data = [path], {}
    while True:
        table = _with_present_names(_read(path))
        base = table.pop("base", None)
        data = _merge_recipes(table, data)
        if base is None:
            return data
        if not isinstance(base, str):
            raise UserError(f"base must be the name or the path of a recipe, got {shown(base)} in {path}")
        path = _find(base, path.parent, named_by=f", the base of {path}")
        known = [link.resolve() for link in chain]
        chain.append(path)
        if path.resolve() in known:
            circle = " -> ".join(_name_of(link) for link in chain[known.index(path.resolve()) :])
            raise UserError(f"the bases run in a circle, {circle}; one of these recipes must do without a base")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text_of(path.read_bytes()))
    except ValueError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _with_present_names(table: Mapping[str, Any]) -> dict[str, Any]:
    """Before tables are merged, since a recipe of earlier may build on one of today, or the other way round."""
    translations = {"train": with_present_names, "optim": with_present_optimizers}
    try:
        return {**table} | {key: translate(table[key]) for key, translate in translations.items() if key in table}
    except ValueError as error:
        raise UserError(f"optim.{error}") from None


def _merge_recipes(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both recipes together; elsewhere than in tables, and of an optimiser's name, `over` wins."""
    optim = {"optim": ready_to_merge(under["optim"], over["optim"])} if "optim" in under.keys() & over.keys() else {}
    return _merge({**under, **optim}, over)


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both tables together, and tables inside them likewise; elsewhere `over` wins."""
    merged = {**under, **over}
    for key in under.keys() & over.keys():
        if isinstance(under[key], Mapping) and isinstance(over[key], Mapping):
            merged[key] = _merge(under[key], over[key])
    return merged


def _parse_override(override: str) -> dict[str, Any]:
    """The nested tables that "section.key=value" stands for."""
    keys, equals, text = override.partition("=")
    path = [key.strip() for key in keys.split(".")]
    if not equals or not all(path):
        raise UserError(
            f"the override {shown(override)} is not of the form section.key=value, like sleep.window_size=24"
        )
    *tables, last = path
    nested = {last: override_value(text)}
    for table in reversed(tables):
        nested = {table: nested}
    return nested


def override_value(text: str) -> Any:
    """The value of an override: TOML, or else a string."""
    try:
        [value] = tomllib.loads(f"value = {text}").values()
    except ValueError:
        return text.strip()
    return value


def _validate(name: str, data: dict[str, Any]) -> Recipe:
    """Strict: a string is no number, and true is not 1."""
    if "name" in data:
        raise UserError("name is not a key of a recipe, which is named after its file; take it out")
    try:
        return Recipe.model_validate({**_with_tuples(data), "name": name}, strict=True)
    except ValidationError as error:
        raise UserError(plain(sentence(error, _keys(data), MODELS))) from None


def _with_tuples(value: Any) -> Any:
    """TOML knows lists, strict validation wants tuples."""
    if isinstance(value, Mapping):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _keys(data: Mapping[str, Any]) -> dict[str, list[str]]:
    """The keys that each section knows, and a stage; those of the task depend on its name."""
    task = data.get("task")
    try:
        chosen = find_task(str(task.get("name"))) if isinstance(task, Mapping) else None
    except UserError:  # which is the mistake to tell
        chosen = None
    configs: dict[str, Any] = {section: Recipe.model_fields[section].annotation for section in _SECTIONS} | {
        "task": chosen,
        "model": MODELS[kind_of_section(data.get("model"))],
        "train.stages": StageConfig,
        "sleep.num_sleep_passes": RandomPasses,
        "train.curriculum": BySuccess,
        "adapt": AdaptConfig,
        "adapt.loss": LossConfig,
        "adapt.start": StartConfig,
    }
    return {section: list(config.model_fields) if config else [] for section, config in configs.items()}
