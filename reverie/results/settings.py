"""What tells runs apart: the keys in which their recipes differ, and how figures, tables and folders name them."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from reverie.errors import UserError
from reverie.recipe import recipe_again

# Keys that do not bear on what is learned, and the seed, over which results are means.
_NO_MATTER = {"name", *(f"train.{key}" for key in (
    "seed", "eval_every", "eval_examples", "checkpoint_every", "data_workers", "compile", "activation_checkpoint",
    "trackers",
))}  # fmt: skip


def differences(recipes: Sequence[Mapping[str, Any]], *, but: Collection[str] = ()) -> list[dict[str, str]]:
    """For each recipe of a card the values of the keys in which they differ, apart from those of `but`.

    A key that one of them lacks is left out there; recipes of earlier are read as today's.
    """
    tables = [_flat(_of_today(recipe)) for recipe in recipes]
    keys = [key for key in dict.fromkeys(key for table in tables for key in table) if key not in _NO_MATTER]
    keys = [key for key in keys if not any(key == other or key.startswith(f"{other}.") for other in but)]
    telling = [key for key in keys if any(table.get(key) != tables[0].get(key) for table in tables)]
    return [{key: shown_value(table[key]) for key in telling if key in table} for table in tables]


def _of_today(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return recipe_again(recipe).model_dump(mode="json")
    except (ValidationError, UserError):  # of a version or a task that is not here
        return recipe


def _flat(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The values of all tables inside by dotted keys; None is as if it were not there."""
    found = dict[str, Any]()
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{above}{key}.")
        elif value is not None:
            found[f"{above}{key}"] = value
    return found


def shown_value(value: Any) -> str:
    """A value of a recipe in a label: words without quotes, numbers in few digits, and tables as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple) and not any(isinstance(part, list | tuple | Mapping) for part in value):
        return ",".join(map(shown_value, value))
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Each dotted key with the shortest end of it that no other one has: "model.width" is "width"."""
    keys = list(keys)

    def ends(key: str) -> list[str]:
        parts = key.split(".")
        return [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]

    return {key: next(end for end in ends(key) if sum(end in ends(other) for other in keys) == 1) for key in keys}


def settings_label(settings: Mapping[str, str]) -> str:
    """Such as "update_rule = delta, lr = 0.01"."""
    return ", ".join(f"{name} = {settings[key]}" for key, name in short_names(settings).items())
