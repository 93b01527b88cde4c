"""`reverie data gsm-infinite` and `data check`: parse and call; no logic."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from reverie.cli.data import Count, DataFile, DataSplit, Seed, Workers, write_rows
from reverie.cli.options import AsJson, checked, name_list, number_range
from reverie.cli.terminal import say

app = typer.Typer(rich_markup_mode=None)

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
    write_rows(rows, count, out, workers, as_json)


@app.command("check")
def check_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="GSM-Infinite problems, .jsonl or .jsonl.gz.")],
    as_json: AsJson = False,
) -> None:
    """Solve every GSM-Infinite problem of a file from its text, and compare; exit code 1 if something differs."""
    from reverie.tasks.gsm_infinite.check import check_problems

    check = check_problems(file)
    if as_json:
        say(json.dumps(asdict(check)))
    else:
        right = f"{check.answers_right} answers and {check.operations_right} operation counts right"
        say(f"{check.problems} problems: {right}")
        for complaint in check.complaints[:10]:
            say(complaint)
        if len(check.complaints) > 10:
            say(f"and {len(check.complaints) - 10} more")
    if check.complaints:
        raise typer.Exit(1)
