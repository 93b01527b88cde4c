"""Pydantic's report on a recipe as one sentence, in the words of the TOML file."""

import json
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from reverie.errors import UserError
from reverie.named import OutsideError
from reverie.tasks import task_names
from reverie.tasks.registry import nearest_task

_LONGEST = 200  # characters of a value in a sentence

# By pydantic's type of error: what the value must be.
_MUST_BE = {
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "greater_than": "above {gt:.15g}",
    "greater_than_equal": "at least {ge:.15g}",
    "less_than": "below {lt:.15g}",
    "less_than_equal": "at most {le:.15g}",
    "finite_number": "a finite number",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length}",
    "literal_error": "{expected}",  # in single quotes
}


Keys = Mapping[str, Sequence[str]]
"""Allowed keys of a recipe by section, or by table in a section; those of the task depend on its name."""


def sentence(error: ValidationError, keys: Keys, model_kinds: Container[object]) -> str:
    """The first mistake as a sentence, unknown keys before all others, and how many others there are.

    Args:
        keys: allowed keys by section.
        model_kinds: tags of the union of models, which pydantic puts between "model" and the key.
    """
    by_key: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for details in error.errors():
        details["loc"] = loc = _place(details["loc"], model_kinds)
        by_key.setdefault(loc[:2], []).append(details)
    mistakes = sorted(by_key.values(), key=lambda group: group[0]["type"] != "extra_forbidden")
    others = len(mistakes) - 1
    return _mistake(mistakes[0], keys) + (f" (and {others} other error{'s' * (others > 1)})" if others else "")


def user_error(error: ValidationError) -> UserError | None:
    """The first error in it that is a sentence for the user already; None if it has none."""
    raised = (details.get("ctx", {}).get("error") for details in error.errors())
    return next((one for one in raised if isinstance(one, UserError)), None)


def _place(loc: tuple[int | str, ...], model_kinds: Container[object]) -> tuple[int | str, ...]:
    """Pydantic's location as (section, key, what follows inside the value), without the tags of unions.

    A key of a stage counts as one key: "stages[0].share".
    """
    if loc[:1] == ("model",) and loc[1:2] and loc[1] in model_kinds:
        return loc[:1] + loc[2:]
    if loc[:2] == ("train", "stages") and loc[3:]:
        return ("train", f"stages[{loc[2]}].{loc[3]}", *loc[4:])
    if loc[:2] == ("train", "curriculum"):  # after which pydantic puts which kind it is
        return ("train", ".".join(("curriculum", *map(str, loc[3:]))))
    if loc[:2] == ("adapt", "start"):  # likewise
        return ("adapt", ".".join(("start", *map(str, loc[3:]))))
    if loc[:2] == ("adapt", "loss") or (loc[:1] == ("optim",) and loc[1:]):
        return (loc[0], ".".join(map(str, loc[1:])))
    if loc[:2] == ("train", "num_sleep_passes"):  # where `Recipe` has put it
        return ("sleep", ".".join(map(str, loc[1:])))
    return loc


def _mistake(errors: list[ErrorDetails], keys: Keys) -> str:
    """The sentence for one key. Several errors come from a union: each of its branches has its own reason."""
    first = errors[0]
    key = ".".join(map(str, first["loc"][:2]))
    context = first.get("ctx", {})
    match first["type"]:
        case "extra_forbidden":
            return f"{key} is not a known {'key' if '.' in key else 'section'}; {_hint(key, keys)}"
        case "missing" if "." not in key:
            return f"section {key} is missing; a recipe needs {', '.join(_sections(keys)[:5])}"  # adapt comes after
        case "missing" if len(first["loc"]) == 2:
            return f"{key} is missing; it has no default, so the recipe must set it"
        case "union_tag_not_found":
            return f"task.name is missing; it must be {any_of(task_names())}"
        case "union_tag_invalid":
            near = nearest_task(context["tag"])
            hint = f"; did you mean {near}?" if near else ""
            return f"task.name must be {any_of(task_names())}, got {shown(first['input']['name'])}{hint}"
        case "value_error":  # mostly of a validator over a whole section, which names its keys without the section
            message = str(context["error"])
            if isinstance(context["error"], OutsideError):
                return message
            if "." in key:  # of a validator over one key
                return f"{key} {message}"
            named = re.split(r"\W", message)[0]
            return f"{key}.{message}" if named in keys.get(key, ()) else message
    return out_of_place(key, errors)


def out_of_place(key: str, errors: list[ErrorDetails]) -> str:
    """The sentence for a value of the wrong type or out of range.

    Of the branches of a union it names those that came closest to accepting the value.
    """

    def closeness(error: ErrorDetails) -> tuple[int, bool]:
        return len(_indices(error)), not error["type"].endswith("_type")

    best = max(map(closeness, errors))
    errors = [error for error in errors if closeness(error) == best]
    last, indices = errors[-1], _indices(errors[-1])
    if last["type"] == "missing":
        return f"{key} must be a list of {indices[-1] + 1}, got {shown(last['input'])}"
    where = key + "".join(f"[{index}]" for index in indices)
    if last["type"] not in _MUST_BE:
        return f"{where} is wrong: {last['msg']}"
    reasons = [_MUST_BE[error["type"]].format(**error.get("ctx", {})) for error in errors if error["type"] in _MUST_BE]
    must_be = " or ".join(dict.fromkeys(reasons)).replace("'", '"')
    return f"{where} must be {must_be}, got {shown(last['input'])}"


def _sections(keys: Keys) -> list[str]:
    return [name for name in keys if "." not in name]


def _indices(error: ErrorDetails) -> list[int]:
    return [part for part in error["loc"] if isinstance(part, int)]


def _hint(key: str, keys: Keys) -> str:
    """A suggestion for an unknown key: it in another section, else a similar one in its own, else in any."""
    section, _, name = key.rpartition(".")
    own = keys.get(re.sub(r"\[\d+\]", "", section), _sections(keys))
    dotted = {f"{owner}.{known}": known for owner in keys for known in keys[owner]}

    def similar(names: Iterable[str], cutoff: float = 0.6) -> list[str]:
        return get_close_matches(name, list(names), n=1, cutoff=cutoff)

    near = [place for place, known in dotted.items() if known == name]
    near += [key.removesuffix(name) + known for known in similar(own)]
    near += [place for place, known in dotted.items() if [known] == similar(dotted.values(), cutoff=0.7)]
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(own)}"


def any_of(names: Iterable[str]) -> str:
    """Names as a list in words: "a, b or c"."""
    *rest, last = names
    return f"{', '.join(rest)} or {last}" if rest else last


def shown(value: Any) -> str:
    """A value about as TOML writes it, or the beginning of a long one."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
