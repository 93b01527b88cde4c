"""`reverie train`, `compare` and `demo`: parse and call; no logic."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reverie.cli.options import (
    AsJson,
    Device,
    Overrides,
    RecipeName,
    device_named,
    either,
    number_list,
    passes_list,
    varied_keys,
)
from reverie.cli.progress import RunDisplay
from reverie.cli.terminal import err_console, interruptible, show, tell
from reverie.errors import UserError
from reverie.train.torchrun import is_first, restarted, started_by_torchrun

if TYPE_CHECKING:
    import torch

    from reverie.recipe import Recipe
    from reverie.results.card import ComparisonCard, RunCard
    from reverie.train.distributed import Parallel
    from reverie.train.plan import Run

app = typer.Typer(rich_markup_mode=None)


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
    from reverie.recipe import load_recipe
    from reverie.results.checkpoint import find_checkpoint

    resolved = load_recipe(recipe, overrides or [])
    folder, where, how = out or Path("runs") / resolved.name, device_named(device), _parallel(parallel)
    _check_several(how, nproc, max_restarts)
    if not started_by_torchrun():  # where another process may just have begun the run
        _check_resume(resume, folder, find_checkpoint(folder) is not None)
    if nproc > 1:
        from reverie.train.launch import launch

        options = [f"--set={override}" for override in overrides or []] + ["--resume"] * resume + ["--json"] * as_json
        options += [f"--out={folder}", f"--device={where.type}", f"--parallel={how}"]
        options += [] if max_seconds is None else [f"--max-seconds={max_seconds}"]
        return launch(
            [recipe, *options], nproc, folder, where, batch_size=resolved.train.batch_size, max_restarts=max_restarts
        )
    from reverie.train.distributed import joined
    from reverie.train.run import train
    from reverie.train.worker import Event

    _tell_if_slow(resolved, where)
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
        tell(f"run in {folder}")


@app.command("compare")
def compare_command(
    recipe: RecipeName,
    vary: Annotated[
        list[str] | None, typer.Option(metavar="KEY=A,B", help="Every value of a key, with all of the others.")
    ] = None,
    passes: Annotated[
        str | None, typer.Option(help="Numbers of sleep passes; 1,2,4 if absent, the recipe's if other keys vary.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds; 0,1,2 if absent.")] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the runs; runs/compare/RECIPE if absent.")] = None,
    transformer: Annotated[
        bool | None,
        typer.Option("--transformer/--no-transformer", help="A baseline too; if absent, where N alone varies."),
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs at a time; one a core if absent, one on a GPU.")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train models that differ in passes, seeds or any keys, one process each; table, figure and card over seeds.

    Called again, it takes finished runs as they are and goes on with broken-off ones.
    """
    from reverie.recipe import load_recipe
    from reverie.train.plan import load_variants, plan_variants

    resolved, varied = load_recipe(recipe, overrides or []), varied_keys(vary or [])
    passes, passes_option = either(varied, "sleep.num_sleep_passes", passes, "--passes")
    seeds, seeds_option = either(varied, "train.seed", seeds, "--seeds")
    passes = "1,2,4" if passes is None and not varied else passes
    folder = out or Path("runs/compare") / resolved.name
    runs = plan_variants(
        load_variants(recipe, overrides or [], varied),
        None if passes is None else passes_list(passes, passes_option),
        number_list("0,1,2" if seeds is None else seeds, seeds_option),
        folder,
        transformer=not varied if transformer is None else transformer,
    )
    _compare(resolved, runs, folder, jobs, device_named(device), as_json)


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/demo"), as_json: AsJson = False
) -> None:
    """Train transformer, hybrid (N = 1) and sleep (N = 3) live on a small task, then table and figure."""
    from reverie.recipe import load_recipe
    from reverie.train.plan import plan_runs

    resolved = load_recipe("demo")
    runs = plan_runs(resolved, [1, 3], [0], out, transformer=True)
    _compare(resolved, runs, out, None, device_named("cpu"), as_json)


def _compare(
    recipe: Recipe, runs: list[Run], folder: Path, jobs: int | None, device: torch.device, as_json: bool
) -> None:
    from reverie.train.compare import FIGURE_NAME, compare

    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {jobs}")
    _tell_if_slow(recipe, device)
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
    tell(f"figure in {folder / FIGURE_NAME}")


def _tell_if_slow(recipe: Recipe, device: torch.device) -> None:
    from reverie.train.precision import has_fast_bfloat16

    if recipe.train.dtype == "bfloat16" and not has_fast_bfloat16(device) and is_first():
        slow = "slow: this processor has no products of bfloat16; train.dtype=float32 is many times as fast"
        tell(slow)


def _print_card(card: RunCard | ComparisonCard, as_json: bool) -> None:
    from reverie.results.tables import comparison_table, kinds_table, run_table

    if card.kind == "comparison":
        show(as_json, card, comparison_table(card))
    else:
        show(as_json, card, run_table(card), *([kinds_table(card)] if "by_kind" in card.score else []))


def _parallel(name: str) -> Parallel:
    if name == "ddp" or name == "fsdp":
        return name
    raise UserError(f"--parallel must be ddp or fsdp, got {name!r}")


def _check_several(parallel: Parallel, nproc: int, max_restarts: int) -> None:
    """Raises UserError for options that mean nothing to one process, or to those of torchrun."""
    if nproc > 1 and started_by_torchrun():
        raise UserError(f"--nproc {nproc} starts processes of its own: leave it out under torchrun")
    if parallel == "fsdp" and nproc == 1 and not started_by_torchrun():
        raise UserError("--parallel fsdp is for several processes: add --nproc, or start it with torchrun")
    if max_restarts and nproc == 1:
        raise UserError("--max-restarts is for the processes of --nproc: add that, or give it to torchrun itself")


def _check_resume(resume: bool, folder: Path, there: bool) -> None:
    """Raises UserError unless --resume is given where there is a run, and there alone."""
    if there and not resume:
        raise UserError(f"{folder} already holds a run: add --resume to go on with it, or choose another --out")
    if resume and not there:
        raise UserError(f"{folder} holds no run to go on with: leave out --resume to start one")
