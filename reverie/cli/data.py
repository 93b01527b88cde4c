"""`reverie data`: parses and calls; no logic."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from reverie.cli.options import AsJson, Overrides, checked
from reverie.cli.progress import RowDisplay
from reverie.cli.terminal import err_console, interruptible, say
from reverie.errors import UserError
from reverie.named import is_named

if TYPE_CHECKING:
    from reverie.tasks.data import Rows


class _AlsoTasks(TyperGroup):
    """The commands of the files here, and one for each task that is known, or that is named module:Class."""

    def list_commands(self, ctx: Any) -> list[str]:
        from reverie.tasks import TASKS

        return [*super().list_commands(ctx), *(name for name, task in TASKS.items() if _recipe_of(task))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if command := super().get_command(ctx, cmd_name):
            return command
        from reverie.tasks import find_task

        task = None if is_named(cmd_name) else find_task(cmd_name)
        return _task_command(cmd_name, _recipe_of(task)) if task or is_named(cmd_name) else None


app = typer.Typer(
    cls=_AlsoTasks, help="Write data sets to disk, and check them.", no_args_is_help=True, rich_markup_mode=None
)

Count = Annotated[int, typer.Option(help="Rows to write.")]
DataFile = Annotated[Path, typer.Option(metavar="FILE", help="A new file that ends in .jsonl or .parquet.")]
TaskRecipe = Annotated[str, typer.Option(metavar="RECIPE", help="The recipe whose task section holds the settings.")]
DataSplit = Annotated[str, typer.Option(help="train, or test: what training never sees.")]
Seed = Annotated[int, typer.Option(help="Of the data.")]
Workers = Annotated[int | None, typer.Option(help="Processes that make rows; one a core if absent.")]


def _recipe_of(task: Any) -> str | None:
    return getattr(task, "data_recipe", None)


def _task_command(name: str, usual_recipe: str | None) -> Any:
    """The command that writes examples of a task."""
    default: Any = ... if usual_recipe is None else usual_recipe  # ...: it must be given

    def command(
        count: Count,
        out: DataFile,
        recipe: TaskRecipe = default,
        overrides: Overrides = None,
        split: DataSplit = "train",
        seed: Seed = 0,
        workers: Workers = None,
        as_json: AsJson = False,
    ) -> None:
        write_rows(_task_rows(name, recipe, overrides, split, seed), count, out, workers, as_json)

    command.__doc__ = f"""Write examples of the task {name}: token ids, labels and text.

    Labels are -100 where there is none. The same command goes on with a file that was broken off, to the same bytes.
    """
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(name)(command)
    return typer.main.get_command(alone)


def _task_rows(name: str, recipe: str, overrides: list[str] | None, split: str, seed: int) -> Rows:
    """Rows of the task in a recipe, which must be the task of this name."""
    from reverie.recipe import load_recipe
    from reverie.tasks.data import TaskRows

    loaded = load_recipe(recipe, overrides or [])
    if loaded.task.name != name:
        raise UserError(f"recipe {loaded.name} is of task {loaded.task.name}; --recipe must be one of task {name}")
    return checked(TaskRows, {"task": loaded.task, "split": split, "seed": seed})


def write_rows(rows: Rows, count: int, out: Path, workers: int | None, as_json: bool) -> None:
    from reverie.tasks.data import write_data

    workers = (os.cpu_count() or 1) if workers is None else workers
    resumable = interruptible("the same command goes on where it stopped")
    with resumable, RowDisplay(err_console, out.name, count) as display:
        summary = write_data(rows, count, out, workers=workers, report=display.update)
    say(json.dumps(asdict(summary)) if as_json else f"{summary.rows} rows in {summary.path}")
