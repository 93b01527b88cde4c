"""`reverie data`: parses and calls; no logic."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from reverie.cli.progress import RowDisplay
from reverie.cli.terminal import AsJson, Overrides, err_console, interruptible
from reverie.errors import UserError
from reverie.tasks.data import Rows, problem_rows, task_rows, write_data
from reverie.tasks.gsm_infinite.check import check_problems

app = typer.Typer(help="Write data sets to disk, and check them.", no_args_is_help=True, rich_markup_mode=None)

Count = Annotated[int, typer.Option(help="Rows to write.")]
DataFile = Annotated[Path, typer.Option(metavar="FILE", help="A new file that ends in .jsonl or .parquet.")]
TaskRecipe = Annotated[str, typer.Option(metavar="RECIPE", help="The recipe whose task section holds the settings.")]
DataSplit = Annotated[str, typer.Option(help="train, or test: what training never sees.")]
Seed = Annotated[int, typer.Option(help="Of the data.")]
Workers = Annotated[int | None, typer.Option(help="Processes that make rows; one a core if absent.")]
Names = list[str] | None


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
    low, high = _range(ops, "--ops")
    config = {
        "worlds": _names(world),
        "levels": _names(level),
        "modes": _names(mode),
        "min_operations": low,
        "max_operations": high,
        "length": None if length is None else _range(length, "--length"),
        "question_position": question,
        "instruction": instruction,
    }
    given = {key: value for key, value in config.items() if value is not None}
    _write_rows(problem_rows(given, unit=unit, split=split, seed=seed), count, out, workers, as_json)


@app.command("rule110")
def rule110_command(
    count: Count,
    out: DataFile,
    recipe: TaskRecipe = "rule110/paper-depth",
    overrides: Overrides = None,
    split: DataSplit = "train",
    seed: Seed = 0,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Write Rule 110 examples: token ids, labels and text.

    Labels are -100 where there is none. The same command goes on with a file that was broken off, to the same bytes.
    """
    _write_rows(task_rows("rule110", recipe, overrides or [], split=split, seed=seed), count, out, workers, as_json)


@app.command("depo")
def depo_command(
    count: Count,
    out: DataFile,
    recipe: TaskRecipe = "depo/paper",
    overrides: Overrides = None,
    split: DataSplit = "train",
    seed: Seed = 0,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Write Depo examples: token ids, labels and text.

    Labels are -100 where there is none. The same command goes on with a file that was broken off, to the same bytes.
    """
    _write_rows(task_rows("depo", recipe, overrides or [], split=split, seed=seed), count, out, workers, as_json)


@app.command("check")
def check_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="GSM-Infinite problems, .jsonl or .jsonl.gz.")],
    as_json: AsJson = False,
) -> None:
    """Solve every GSM-Infinite problem of a file from its text, and compare; exit code 1 if something differs."""
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


def _write_rows(rows: Rows, count: int, out: Path, workers: int | None, as_json: bool) -> None:
    workers = (os.cpu_count() or 1) if workers is None else workers
    resumable = interruptible("the same command goes on where it stopped")
    with resumable, RowDisplay(err_console, out.name, count) as display:
        summary = write_data(rows, count, out, workers=workers, report=display.update)
    typer.echo(json.dumps(asdict(summary)) if as_json else f"{summary.rows} rows in {summary.path}")


def _range(text: str, option: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    try:
        first, last = int(low), int(high if dash else low)
    except ValueError:
        first, last = 1, 0
    if first > last:
        raise UserError(f"{option} must be a range such as 4-8, smaller number first, or one number, got {text!r}")
    return first, last


def _names(values: list[str] | None) -> tuple[str, ...] | None:
    """Of an option that may be repeated and may hold several names."""
    return tuple(name.strip() for value in values for name in value.split(",")) if values else None
