"""Options of commands, and errors about them in the words of the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from reverie.errors import UserError

if TYPE_CHECKING:
    import torch
    from pydantic import BaseModel

MOST_PASSES = MOST_NUMBERS = 10_000  # of sleep; and of numbers in one option

Config = TypeVar("Config", bound="BaseModel")

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A shipped recipe such as depo/nano, or a .toml file.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. sleep.num_sleep_passes=4.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Int8 = Annotated[
    bool, typer.Option("--int8", help="Write by products in int8: faster and less exact; of models of transformers.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps (never tested), or auto: cuda where there is one.")]


def device_named(name: str) -> torch.device:
    """The device that --device names. Raises UserError for any other, or for a device that is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no CUDA device here; use --device cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: torch finds no Metal device here; use --device cpu")
    if name not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device must be cpu, cuda, mps or auto, got {name!r}")
    return torch.device(name)


def checked(config: type[Config], values: Mapping[str, Any], options: Mapping[str, str] | None = None) -> Config:
    """A config from options, checked as a recipe is; key `x` is option --x, or `options["x"]`.

    Raises UserError, in one sentence, for the first value that is wrong.
    """
    from pydantic import ValidationError

    from reverie.recipe.errors import out_of_place

    try:
        return config.model_validate(values, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        option = "".join(
            (options or {}).get(str(key), f"--{key}") for key in first["loc"][:1]
        )  # none: the whole config
        if first["type"] == "value_error":
            raise UserError(f"{option} {first.get('ctx', {})['error']}".strip()) from None
        raise UserError(out_of_place(option, [{**first, "loc": ()}])) from None


def number_list(text: str, option: str, example: str = "1,2,4") -> list[int]:
    """The numbers of an option such as 4 or 1,2,4 or 1..8. Raises UserError for anything else."""
    try:
        bounds = [[int(number) for number in part.split("..", 1)] for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"{option} must be whole numbers separated by commas, such as {example}, or a range, such as 1..8, got "
            f"{text!r}"
        ) from None
    if any(bound[0] > bound[-1] for bound in bounds):
        raise UserError(f"{option} has a range that ends before it begins, {text!r}: give the smaller number first")
    if sum(bound[-1] - bound[0] + 1 for bound in bounds) > MOST_NUMBERS:
        raise UserError(f"{option} must be at most {MOST_NUMBERS:,} numbers, got {text!r:.60}")
    return [number for bound in bounds for number in range(bound[0], bound[-1] + 1)]


def passes_list(text: str, option: str = "--passes") -> list[int]:
    """Numbers of sleep passes, as an option says them."""
    numbers = number_list(text, option)
    if max(numbers) > MOST_PASSES:
        raise UserError(f"{option} must be at most {MOST_PASSES:,}, got {max(numbers):,}")
    return numbers


def varied_keys(options: list[str]) -> dict[str, list[str]]:
    """The values of each key of --vary KEY=A,B, which are separated by commas outside of brackets and quotes."""
    varied = dict[str, list[str]]()
    for option in options:
        key, equals, text = (part.strip() for part in option.partition("="))
        values = _values(text)
        if not equals or not key or not all(values):
            raise UserError(
                f"--vary must be KEY=VALUE,VALUE, such as model.update_rule=hebbian,delta, got {option!r}; a list or a "
                "string with commas keeps its brackets or quotes"
            )
        varied.setdefault(key, []).extend(values)
    return varied


def _values(text: str) -> list[str]:
    values, depth, quote = [""], 0, ""
    for letter in text:
        if letter == "," and not depth and not quote:
            values.append("")
            continue
        values[-1] += letter
        if quote or letter in ("'", '"'):
            quote = "" if letter == quote else quote or letter
        else:
            depth += (letter in "[{") - (letter in "]}")
    return [value.strip() for value in values]


def either(varied: dict[str, list[str]], key: str, text: str | None, option: str) -> tuple[str | None, str]:
    """Numbers that --vary gives, which are taken out of `varied`, or an option of their own; and what gave them."""
    if key not in varied:
        return text, option
    if text is not None:
        raise UserError(f"{option} and --vary {key} are the same: leave one out")
    return ",".join(varied.pop(key)), f"--vary {key}"


def tolerance_list(text: str) -> list[float]:
    """The numbers that --tolerance gives."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < tolerance < math.inf for tolerance in found):
        raise UserError(f"--tolerance must be numbers above 0 separated by commas, such as 0.8,0.5,0.3, got {text!r}")
    return found


def number_range(text: str, option: str) -> tuple[int, int]:
    """The first and last number of a range such as 4-8, or one number. Raises UserError for anything else."""
    low, dash, high = text.partition("-")
    try:
        first, last = int(low), int(high if dash else low)
    except ValueError:
        first, last = 1, 0
    if first > last:
        raise UserError(f"{option} must be a range such as 4-8, smaller number first, or one number, got {text!r}")
    return first, last


def name_list(values: list[str] | None) -> tuple[str, ...] | None:
    """The names that an option gives, which may be repeated and may hold several."""
    return tuple(name.strip() for value in values for name in value.split(",")) if values else None
