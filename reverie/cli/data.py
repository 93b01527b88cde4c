"""`reverie data`: parses and calls; no logic."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reverie.cli.options import AsJson, Overrides, checked, name_list, number_range
from reverie.cli.progress import RowDisplay
from reverie.cli.terminal import err_console, interruptible
from reverie.errors import UserError

if TYPE_CHECKING:
    from reverie.tasks.data import Rows

app = typer.Typer(help="Write data sets to disk, and check them.", no_args_is_help=True, rich_markup_mode=None)

Count = Annotated[int, typer.Option(help="Rows to write.")]
DataFile = Annotated[Path, typer.Option(metavar="FILE", help="A new file that ends in .jsonl or .parquet.")]
TaskRecipe = Annotated[str, typer.Option(metavar="RECIPE", help="The recipe whose task section holds the settings.")]
DataSplit = Annotated[str, typer.Option(help="train, or test: what training never sees.")]
Seed = Annotated[int, typer.Option(help="Of the data.")]
Workers = Annotated[int | None, typer.Option(help="Processes that make rows; one a core if absent.")]
Names = list[str] | None

_OPTIONS = {  # where the key of ProblemConfig is another word
    "worlds": "--world",
    "levels": "--level",
    "modes": "--mode",
    "min_operations": "--ops",
    "max_operations": "--ops",
    "question_position": "--question",
}


@app.command("gsm-infinite")
def gsm_infinite_command(
    count: Count,
    out: DataFile,
    ops: Annotated[str, typer.Option(help="Operations of the answers, which take turns: 1-8, or 4.")] = "1-8",
    length: Annotated[
        str | None, typer.Option(help="Length of the prompts, such as 2000-3300; unpadded if absent.")
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            help="Of lengths: SmolLM2's tokens, or characters; if absent tokens, without --length characters."
        ),
    ] = None,
    world: Annotated[Names, typer.Option(help="wildlife, education, film; comma-separated, all if absent.")] = None,
    level: Annotated[Names, typer.Option(help="medium, hard; comma-separated, all if absent.")] = None,
    mode: Annotated[Names, typer.Option(help="forward, reverse; comma-separated, all if absent.")] = None,
    question: Annotated[str, typer.Option(help="Where it stands in the prompt: first, or last.")] = "first",
    instruction: Annotated[bool, typer.Option(help="Begin prompts by saying what totals mean.")] = True,
    split: DataSplit = "train",
    seed: Seed = 0,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Write GSM-Infinite problems: text, solution and answer.

    The same command goes on with a file that was broken off, to the same bytes.
    """
    from reverie.tasks.data import ProblemRows
    from reverie.tasks.gsm_infinite import ProblemConfig

    low, high = number_range(ops, "--ops")
    config = {
        "worlds": name_list(world),
        "levels": name_list(level),
        "modes": name_list(mode),
        "min_operations": low,
        "max_operations": high,
        "length": None if length is None else number_range(length, "--length"),
        "question_position": question,
        "instruction": instruction,
    }
    given = {key: value for key, value in config.items() if value is not None}
    problems = checked(ProblemConfig, given, _OPTIONS)
    rows = checked(ProblemRows, {"problems": problems, "unit": unit, "split": split, "seed": seed})
    _write_rows(rows, count, out, workers, as_json)


def _task_command(name: str, title: str, usual_recipe: str) -> None:
    """Add the command that writes examples of a task."""

    def command(
        count: Count,
        out: DataFile,
        recipe: TaskRecipe = usual_recipe,
        overrides: Overrides = None,
        split: DataSplit = "train",
        seed: Seed = 0,
        workers: Workers = None,
        as_json: AsJson = False,
    ) -> None:
        _write_rows(_task_rows(name, recipe, overrides, split, seed), count, out, workers, as_json)

    command.__doc__ = f"""Write {title} examples: token ids, labels and text.

    Labels are -100 where there is none. The same command goes on with a file that was broken off, to the same bytes.
    """
    app.command(name)(command)


_task_command("rule110", "Rule 110", "rule110/paper-depth")
_task_command("depo", "Depo", "depo/paper")


@app.command("check")
def check_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="GSM-Infinite problems, .jsonl or .jsonl.gz.")],
    as_json: AsJson = False,
) -> None:
    """Solve every GSM-Infinite problem of a file from its text, and compare; exit code 1 if something differs."""
    from reverie.tasks.gsm_infinite.check import check_problems

    check = check_problems(file)
    if as_json:
        typer.echo(json.dumps(asdict(check)))
    else:
        right = f"{check.answers_right} answers and {check.operations_right} operation counts right"
        typer.echo(f"{check.problems} problems: {right}")
        for complaint in check.complaints[:10]:
            typer.echo(complaint)
        if len(check.complaints) > 10:
            typer.echo(f"and {len(check.complaints) - 10} more")
    if check.complaints:
        raise typer.Exit(1)


def _task_rows(name: str, recipe: str, overrides: list[str] | None, split: str, seed: int) -> Rows:
    """Rows of the task in a recipe, which must be the task of this name."""
    from reverie.recipe import load_recipe
    from reverie.tasks.data import TaskRows

    loaded = load_recipe(recipe, overrides or [])
    if loaded.task.name != name:
        raise UserError(f"recipe {loaded.name} is of task {loaded.task.name}; --recipe must be one of task {name}")
    return checked(TaskRows, {"task": loaded.task, "split": split, "seed": seed})


def _write_rows(rows: Rows, count: int, out: Path, workers: int | None, as_json: bool) -> None:
    from reverie.tasks.data import write_data

    workers = (os.cpu_count() or 1) if workers is None else workers
    resumable = interruptible("the same command goes on where it stopped")
    with resumable, RowDisplay(err_console, out.name, count) as display:
        summary = write_data(rows, count, out, workers=workers, report=display.update)
    typer.echo(json.dumps(asdict(summary)) if as_json else f"{summary.rows} rows in {summary.path}")
