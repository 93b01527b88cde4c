"""The command line: parses and calls; no logic."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from reverie.cli.bench import app as bench_app
from reverie.cli.data import app as data_app
from reverie.cli.hf import app as hf_app
from reverie.cli.memory import app as memory_app
from reverie.cli.plot import app as plot_app
from reverie.cli.plot import draw_cards
from reverie.cli.progress import PartDisplay, RunDisplay
from reverie.cli.show import recipe_of_task, show_example
from reverie.cli.store import app as store_app
from reverie.cli.terminal import AsJson, Device, Overrides, device_named, err_console, interruptible, out_console
from reverie.cli.watch import app as watch_app
from reverie.errors import UserError
from reverie.recipe import Recipe, load_recipe
from reverie.results.card import ComparisonCard, RunCard, save_card
from reverie.results.checkpoint import find_checkpoint
from reverie.results.passes.evaluation import evaluate_passes
from reverie.results.run import evaluate_run
from reverie.results.tables import comparison_table, depth_table, passes_tables, run_table
from reverie.tasks import TASKS
from reverie.train.compare import FIGURE_NAME, Run, compare, plan_runs
from reverie.train.distributed import Parallel, is_first, joined, restarted, started_by_torchrun
from reverie.train.launch import ProcessDied, launch
from reverie.train.run import train
from reverie.train.worker import Event

MOST_PASSES = MOST_NUMBERS = 10_000  # of sleep; and of numbers in one option

app = typer.Typer(
    help="Language models that sleep: they consolidate a full context window into fast weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
tasks_app = typer.Typer(help="Look at the tasks.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(tasks_app, name="tasks")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(hf_app)
app.add_typer(plot_app)
app.add_typer(memory_app)
app.add_typer(store_app)
app.add_typer(watch_app)

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A shipped recipe such as depo/nano, or a .toml file.")
]


@app.command("train")
def train_command(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/RECIPE if absent.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the folder.")] = False,
    max_seconds: Annotated[
        float | None, typer.Option(min=1, help="Stop within that time, saved; --resume goes on.")
    ] = None,
    device: Device = "auto",
    nproc: Annotated[int, typer.Option(min=1, help="Processes that train it together, on GPUs one each.")] = 1,
    parallel: Annotated[str, typer.Option(help="ddp, or fsdp: parameters shared out among the processes.")] = "ddp",
    max_restarts: Annotated[int, typer.Option(min=0, help="How often all start again if a process dies.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train one model by a recipe; leaves checkpoint, TensorBoard curves and a result card."""
    resolved = load_recipe(recipe, overrides or [])
    folder, where, how = out or Path("runs") / resolved.name, device_named(device), _parallel(parallel)
    if nproc > 1:
        options = [f"--set={override}" for override in overrides or []] + ["--resume"] * resume + ["--json"] * as_json
        options += [f"--out={folder}", f"--device={where.type}", f"--parallel={how}"]
        options += [] if max_seconds is None else [f"--max-seconds={max_seconds}"]
        return launch(resolved, [recipe, *options], nproc, folder, where, max_restarts=max_restarts)
    _check_several(how, max_restarts)
    resumable = interruptible(f"the same command with --resume goes on from the last checkpoint in {folder}")
    with resumable, joined(how, where) as (processes, own_device), RunDisplay(err_console) as display:
        # Where another node failed, this one's torchrun does not count a restart.
        again = any(processes.gather(restarted())) and find_checkpoint(folder) is not None
        card = train(
            resolved,
            folder,
            resume=resume or again,
            device=own_device,
            report=lambda progress, loss: display.update(resolved.name, Event.of(resolved, progress, loss)),
            processes=processes,
            max_seconds=max_seconds,
        )
    if is_first():
        _print_card(card, as_json)
        typer.echo(f"run in {folder}", err=True)


@app.command("eval")
def eval_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    passes: Annotated[
        str | None, typer.Option(metavar="N", help="Sleep passes, such as 4 or 1,2,4 or 1..8; as trained if absent.")
    ] = None,
    tolerance: Annotated[
        str | None, typer.Option(help="Adaptive sleep too: wake when a pass changes less, such as 0.8,0.5,0.3.")
    ] = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help="Held-out examples; as the recipe says if absent.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a card (.json) of several passes, and its figure.")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Evaluate the checkpoint of a run on held-out examples; accuracy at every depth, beside chance.

    Of several runs, or at several numbers of passes: accuracy over the number of passes.
    """
    numbers = None if passes is None else sorted(set(_passes(passes)))
    if len(runs) > 1 or tolerance is not None or out is not None or (numbers and len(numbers) > 1):
        _eval_passes(runs, numbers, tolerance, examples, out, device_named(device), as_json)
        return
    card = evaluate_run(
        runs[0], num_sleep_passes=numbers[0] if numbers else None, num_examples=examples, device=device_named(device)
    )
    if as_json:
        typer.echo(card.model_dump_json())
    else:
        out_console.print(depth_table(card))


def _eval_passes(
    runs: list[Path],
    numbers: list[int] | None,
    tolerance: str | None,
    examples: int | None,
    out: Path | None,
    device: torch.device,
    as_json: bool,
) -> None:
    if numbers is None:
        raise UserError("several runs, --tolerance and --out need --passes, such as --passes 1..8")
    if out is not None and out.suffix != ".json":
        raise UserError(f"--out must be the card's file and end in .json, got {out}; the figure is drawn beside it")
    tolerances = [] if tolerance is None else _tolerances(tolerance)
    with PartDisplay(err_console, "eval") as display:
        card = evaluate_passes(runs, numbers, tolerances, num_examples=examples, device=device, report=display.update)
    if as_json:
        typer.echo(card.model_dump_json())
    else:
        for table in passes_tables(card):
            out_console.print(table, "")
    if out is not None:  # last: what took minutes is shown even where it cannot be written
        save_card(card, out)
        typer.echo(f"figure in {draw_cards([out])[0]}", err=True)


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
    runs = plan_runs(resolved, _passes(passes), _numbers(seeds, "--seeds"), folder, transformer=transformer)
    _compare(resolved, runs, folder, jobs, device_named(device), as_json)


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
    name: Annotated[str, typer.Argument(metavar="NAME", help="A task (its smallest recipe) or a recipe.")],
    overrides: Overrides = None,
    example: Annotated[int, typer.Option(min=0, help="Which held-out example.")] = 0,
) -> None:
    """Print a real example, coloured by window, phase and label."""
    resolved = load_recipe(recipe_of_task(name) if name in TASKS else name, overrides or [])
    out_console.print(show_example(resolved, example), soft_wrap=False)


@app.callback()
def _options() -> None:
    """Nothing to set for all commands; makes typer show their list."""


def _compare(
    recipe: Recipe, runs: list[Run], folder: Path, jobs: int | None, device: torch.device, as_json: bool
) -> None:
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {jobs}")
    resumable = interruptible("the same command goes on from the last checkpoints")
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


def _print_card(card: RunCard | ComparisonCard, as_json: bool) -> None:
    if as_json:
        typer.echo(card.model_dump_json())
    else:
        out_console.print(comparison_table(card) if isinstance(card, ComparisonCard) else run_table(card))


def _passes(text: str) -> list[int]:
    numbers = _numbers(text, "--passes")
    if max(numbers) > MOST_PASSES:
        raise UserError(f"--passes must be at most {MOST_PASSES:,}, got {max(numbers):,}")
    return numbers


def _numbers(text: str, option: str) -> list[int]:
    """Such as 4 or 1,2,4 or 1..8."""
    try:
        bounds = [[int(number) for number in part.split("..", 1)] for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"{option} must be whole numbers separated by commas, such as 1,2,4, or a range, such as 1..8, got {text!r}"
        ) from None
    if any(bound[0] > bound[-1] for bound in bounds):
        raise UserError(f"{option} has a range that ends before it begins, {text!r}: give the smaller number first")
    if sum(bound[-1] - bound[0] + 1 for bound in bounds) > MOST_NUMBERS:
        raise UserError(f"{option} must be at most {MOST_NUMBERS:,} numbers, got {text!r:.60}")
    return [number for bound in bounds for number in range(bound[0], bound[-1] + 1)]


def _tolerances(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < tolerance < math.inf for tolerance in found):
        raise UserError(f"--tolerance must be numbers above 0 separated by commas, such as 0.8,0.5,0.3, got {text!r}")
    return found


def _parallel(name: str) -> Parallel:
    if name == "ddp" or name == "fsdp":
        return name
    raise UserError(f"--parallel must be ddp or fsdp, got {name!r}")


def _check_several(parallel: Parallel, max_restarts: int) -> None:
    """Of options that mean nothing to one process."""
    if parallel == "fsdp" and not started_by_torchrun():
        raise UserError("--parallel fsdp is for several processes: add --nproc, or start it with torchrun")
    if max_restarts:
        raise UserError("--max-restarts is for the processes of --nproc: add that, or give it to torchrun itself")


def main() -> None:
    """Every UserError is one sentence on stderr and exit code 2; the death of a process of several exit code 1."""
    try:
        app()
    except (UserError, ProcessDied) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2 if isinstance(error, UserError) else 1)
