"""The command line: parses and calls; no logic."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from reverie.card import ComparisonCard, RunCard
from reverie.check import check_problems
from reverie.cli_bench import app as bench_app
from reverie.compare import FIGURE_NAME, Run, compare, plan_runs
from reverie.data import Rows, problem_rows, task_rows, write_data
from reverie.errors import UserError
from reverie.plots import plot_cards
from reverie.progress import RowDisplay, RunDisplay
from reverie.recipe import Recipe, load_recipe
from reverie.show import show_example
from reverie.tables import comparison_table, depth_table, run_table
from reverie.tasks import TASKS
from reverie.train.distributed import Parallel, is_first, joined, restarted
from reverie.train.launch import ProcessDied, launch
from reverie.train.loop import train
from reverie.train.result import evaluate_run
from reverie.train.sharded import find_checkpoint
from reverie.train.stop import exit_code, sigterm_interrupts
from reverie.train.worker import Event

app = typer.Typer(
    help="Language models that sleep: they consolidate a full context window into fast weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
tasks_app = typer.Typer(help="Look at the tasks.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(tasks_app, name="tasks")
data_app = typer.Typer(help="Write data sets to disk, and check them.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")

out_console = Console(quiet=not is_first())
err_console = Console(quiet=not is_first(), stderr=True)  # progress, so that --json leaves stdout to the result

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A shipped recipe such as depo/nano, or a .toml file.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. sleep.num_sleep_passes=4.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")]
Count = Annotated[int, typer.Option(help="Rows to write.")]
DataFile = Annotated[Path, typer.Option(metavar="FILE", help="A new file that ends in .jsonl or .parquet.")]
TaskRecipe = Annotated[str, typer.Option(metavar="RECIPE", help="The recipe whose task section holds the settings.")]
DataSplit = Annotated[str, typer.Option(help="train, or test: what training never sees.")]
Seed = Annotated[int, typer.Option(help="Of the data.")]
Workers = Annotated[int | None, typer.Option(help="Processes that make rows; one a core if absent.")]
Names = list[str] | None


@app.command("train")
def train_command(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/RECIPE if absent.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the folder.")] = False,
    device: Device = "auto",
    nproc: Annotated[int, typer.Option(min=1, help="Processes that train it together, on GPUs one each.")] = 1,
    parallel: Annotated[str, typer.Option(help="ddp, or fsdp: parameters shared out among the processes.")] = "ddp",
    max_restarts: Annotated[int, typer.Option(min=0, help="How often all start again if a process dies.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train one model by a recipe; leaves checkpoint, TensorBoard curves and a result card."""
    resolved = load_recipe(recipe, overrides or [])
    folder, where, how = out or Path("runs") / resolved.name, _device(device), _parallel(parallel)
    if nproc > 1:
        options = [f"--set={override}" for override in overrides or []] + ["--resume"] * resume + ["--json"] * as_json
        options += [f"--out={folder}", f"--device={where.type}", f"--parallel={how}"]
        return launch(resolved, [recipe, *options], nproc, folder, where, max_restarts=max_restarts)
    resume = resume or (restarted() and find_checkpoint(folder) is not None)
    resumable = _interruptible(f"the same command with --resume goes on from the last checkpoint in {folder}")
    with resumable, joined(how, where) as (processes, own_device), RunDisplay(err_console) as display:
        card = train(
            resolved,
            folder,
            resume=resume,
            device=own_device,
            report=lambda progress, loss: display.update(resolved.name, Event.of(resolved, progress, loss)),
            processes=processes,
        )
    if is_first():
        _print_card(card, as_json)
        typer.echo(f"run in {folder}", err=True)


@app.command("eval")
def eval_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    passes: Annotated[int | None, typer.Option(help="Sleep passes N; as trained if absent.")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Evaluate the checkpoint of a run on held-out examples; accuracy at every depth, beside chance."""
    card = evaluate_run(run, num_sleep_passes=passes, device=_device(device))
    if as_json:
        typer.echo(card.model_dump_json())
    else:
        out_console.print(depth_table(card))


@app.command("plot")
def plot_command(
    cards: Annotated[list[Path], typer.Argument(metavar="CARD...", help="Result cards (JSON).")],
    out: Annotated[Path | None, typer.Option(help="Folder for the figures; beside each card if absent.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the figure of each card."""
    figures = [str(path) for path in plot_cards(cards, out)]
    typer.echo(json.dumps({"figures": figures}) if as_json else "\n".join(figures))


@app.command("compare")
def compare_command(
    recipe: RecipeName,
    passes: Annotated[str, typer.Option(help="Numbers of sleep passes, comma-separated.")] = "1,2,4",
    seeds: Annotated[str, typer.Option(help="Seeds, comma-separated.")] = "0,1,2",
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the runs; runs/compare/RECIPE if absent.")] = None,
    transformer: Annotated[bool, typer.Option(help="Train the transformer baseline too.")] = True,
    jobs: Annotated[int | None, typer.Option(help="Runs at a time; one a core if absent, one on a GPU.")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train models that differ in passes and seeds, one process each; table, figure and card with mean and spread.

    Called again, it takes finished runs as they are and goes on with broken-off ones.
    """
    resolved = load_recipe(recipe, overrides or [])
    folder = out or Path("runs/compare") / resolved.name
    runs = plan_runs(
        resolved, _numbers(passes, "--passes"), _numbers(seeds, "--seeds"), folder, transformer=transformer
    )
    _compare(resolved, runs, folder, jobs, _device(device), as_json)


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/demo"),
    as_json: AsJson = False,
) -> None:
    """Train transformer, hybrid (N = 1) and sleep (N = 3) live on a small task, then table and figure."""
    resolved = load_recipe("demo")
    _compare(resolved, plan_runs(resolved, [1, 3], [0], out, transformer=True), out, None, torch.device("cpu"), as_json)


@tasks_app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A task (its nano recipe) or a recipe.")],
    overrides: Overrides = None,
    example: Annotated[int, typer.Option(min=0, help="Which held-out example.")] = 0,
) -> None:
    """Print a real example, coloured by window, phase and label."""
    resolved = load_recipe(f"{name}/nano" if name in TASKS else name, overrides or [])
    out_console.print(show_example(resolved, example), soft_wrap=False)


@data_app.command("gsm-infinite")
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


@data_app.command("rule110")
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


@data_app.command("depo")
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


@data_app.command("check")
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


@app.callback()
def _options() -> None:
    """Nothing to set for all commands; makes typer show their list."""


def _compare(
    recipe: Recipe, runs: list[Run], folder: Path, jobs: int | None, device: torch.device, as_json: bool
) -> None:
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {jobs}")
    resumable = _interruptible("the same command goes on from the last checkpoints")
    with resumable, RunDisplay(err_console) as display:
        card = compare(
            recipe.name,
            recipe.train.metric,
            runs,
            folder,
            jobs=jobs or (1 if device.type == "cuda" else os.cpu_count() or 1),
            device=device.type,
            report=lambda run, event: display.update(run.name, event),
        )
    _print_card(card, as_json)
    typer.echo(f"figure in {folder / FIGURE_NAME}", err=True)


def _write_rows(rows: Rows, count: int, out: Path, workers: int | None, as_json: bool) -> None:
    workers = (os.cpu_count() or 1) if workers is None else workers
    resumable = _interruptible("the same command goes on where it stopped")
    with resumable, RowDisplay(err_console, out.name, count) as display:
        summary = write_data(rows, count, out, workers=workers, report=display.update)
    typer.echo(json.dumps(asdict(summary)) if as_json else f"{summary.rows} rows in {summary.path}")


def _print_card(card: RunCard | ComparisonCard, as_json: bool) -> None:
    if as_json:
        typer.echo(card.model_dump_json())
    else:
        out_console.print(comparison_table(card) if isinstance(card, ComparisonCard) else run_table(card))


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} must be whole numbers separated by commas, such as 1,2,4, got {text!r}") from None


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


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no CUDA device here; use --device cpu")
    if name not in ("cpu", "cuda"):
        raise UserError(f"--device must be cpu, cuda or auto, got {name!r}")
    return torch.device(name)


def _parallel(name: str) -> Parallel:
    if name == "ddp" or name == "fsdp":
        return name
    raise UserError(f"--parallel must be ddp or fsdp, got {name!r}")


@contextlib.contextmanager
def _interruptible(advice: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end with advice, and with exit code 130 or 143."""
    try:
        with sigterm_interrupts():
            yield
    except KeyboardInterrupt as interruption:
        if is_first():
            typer.echo(f"{str(interruption) or 'interrupted'}; {advice}", err=True)
        raise typer.Exit(exit_code(interruption)) from None


def main() -> None:
    """Every UserError is one sentence on stderr and exit code 2; the death of a process of several exit code 1."""
    try:
        app()
    except (UserError, ProcessDied) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2 if isinstance(error, UserError) else 1)
