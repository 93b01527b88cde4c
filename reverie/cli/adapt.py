"""`reverie adapt`: parse and call; no logic."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from reverie.cli.hf import need_transformers
from reverie.cli.options import AsJson, Device, Overrides, device_named
from reverie.cli.terminal import tell
from reverie.cli.train import train_command
from reverie.errors import UserError

app = typer.Typer(rich_markup_mode=None)

_RECIPES = {"hops": "hops/smollm2", "gsm_pages": "gsm_pages/smollm2"}  # of a task by itself


@app.command("adapt")
def adapt_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="smollm2, a folder, or a name on the hub.")],
    data: Annotated[
        list[str],
        typer.Option(
            metavar="DATA", help="notes, hops, gsm_pages, qa:FILE or text:DIR; several by weight, as in notes=3."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run; the adapter is in its folder adapter.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the folder.")] = False,
    max_seconds: Annotated[
        float | None,
        typer.Option(min=1, help="Take as many steps, over as many pages, as fit; where too many, --resume goes on."),
    ] = None,
    device: Device = "cpu",
    nproc: Annotated[int, typer.Option(min=1, help="Processes that train it together.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Teach a pretrained model to remember what it reads; leaves an adapter, checkpoint, curves and a card.

    A recipe is underneath, notes/smollm2 or that of hops or gsm_pages, which --set changes. Products are in bfloat16
    where that is fast.
    """
    from reverie.train.precision import has_fast_bfloat16
    from reverie.train.run import ADAPTER

    need_transformers()
    parts = [_part(one) for one in data]
    settings = {} if model == "smollm2" else _settings(model)
    settings["train.dtype"] = "bfloat16" if has_fast_bfloat16(device_named(device)) else "float32"
    task = (
        parts[0][1] if len(parts) == 1 else {"name": "mixture", "parts": [{"weight": w, "task": t} for w, t in parts]}
    )
    recipes = {_RECIPES.get(task["name"], "notes/smollm2") for _, task in parts}
    base = recipes.pop() if len(recipes) == 1 else "notes/smollm2"
    settings |= {f"task.{key}": value for key, value in task.items()}
    changes = [*(f"{key}={_toml(value)}" for key, value in settings.items() if value is not None), *(overrides or [])]
    begun = time.monotonic()
    changes += _chosen(base, changes, out, resume, max_seconds, device)
    left = None if max_seconds is None else max(max_seconds - (time.monotonic() - begun), 1)
    train_command(base, changes, out, resume, left, device, nproc, as_json=as_json)
    tell(f"adapter in {out / ADAPTER}")


def _chosen(base: str, changes: list[str], out: Path, resume: bool, seconds: float | None, device: str) -> list[str]:
    """What fits into the time, or fitted when the run began, unless it is set."""
    from reverie.recipe import load_recipe
    from reverie.results.checkpoint import find_checkpoint
    from reverie.train.budget import CHOSEN, chosen_before, fitted, measured

    recipe, there = load_recipe(base, changes), find_checkpoint(out) is not None
    if recipe.train.curriculum or any(change.partition("=")[0].strip() in CHOSEN for change in changes):
        return []
    chosen = dict[str, int]()
    if resume and there:
        chosen = chosen_before(out)
    elif seconds is not None and not resume and not there:
        begun = time.monotonic()
        tell("measuring what steps and pages cost here")
        costs = measured(recipe, device_named(device))
        chosen = fitted(recipe, seconds - (time.monotonic() - begun), costs)
        tell(f"{chosen['train.steps']} of {recipe.train.steps} steps over {chosen['adapt.pool']} pages fit")
    return [f"{key}={value}" for key, value in chosen.items()]


def _settings(model: str) -> dict[str, Any]:
    from reverie.hf.adapt import adapter_settings

    return adapter_settings(str(Path(model).resolve()) if Path(model).is_dir() else model)


def _part(data: str) -> tuple[float, dict[str, Any]]:
    """The weight and the task of one --data."""
    found = re.fullmatch(r"(notes|hops|gsm_pages|qa:.+?|text:.+?|[\w.]+:[\w.]+?)(?:=(\d+\.?\d*))?", data)
    if found is None or float(found[2] or 1) == 0:
        raise UserError(
            "--data must be notes, hops, gsm_pages, qa:FILE or text:DIR, or the module:Class of a task of pages, "
            f"perhaps with a weight above 0 as in notes=3; got {data}"
        )
    name, _, place = found[1].partition(":")
    where = {"qa": {"file": place}, "text": {"path": place}}.get(name)
    task = {"name": found[1]} if where is None else {"name": name, **where}
    return float(found[2] or 1), task


def _toml(value: Any) -> str:
    """A value as an override has it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return (
        "[" + ", ".join(map(_toml, value)) + "]" if isinstance(value, list) else json.dumps(value, ensure_ascii=False)
    )
