"""`reverie eval` and `plot`: parse and call; no logic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from reverie.cli.options import AsJson, Device, device_named, passes_list, tolerance_list
from reverie.cli.progress import PartDisplay
from reverie.cli.terminal import err_console, out_console
from reverie.errors import UserError

app = typer.Typer(rich_markup_mode=None)


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
    numbers = None if passes is None else sorted(set(passes_list(passes)))
    if len(runs) > 1 or tolerance is not None or out is not None or (numbers and len(numbers) > 1):
        return _eval_passes(runs, numbers, tolerance, examples, out, device, as_json)
    from reverie.results.run import evaluate_run
    from reverie.results.tables import depth_table

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
    device: str,
    as_json: bool,
) -> None:
    if numbers is None:
        raise UserError("several runs, --tolerance and --out need --passes, such as --passes 1..8")
    if out is not None and out.suffix != ".json":
        raise UserError(f"--out must be the card's file and end in .json, got {out}; the figure is drawn beside it")
    tolerances, where = [] if tolerance is None else tolerance_list(tolerance), device_named(device)
    from reverie.results.card import save_card
    from reverie.results.passes.evaluation import evaluate_passes
    from reverie.results.tables import passes_tables

    with PartDisplay(err_console, "eval") as display:
        card = evaluate_passes(runs, numbers, tolerances, num_examples=examples, device=where, report=display.update)
    if as_json:
        typer.echo(card.model_dump_json())
    else:
        for table in passes_tables(card):
            out_console.print(table, "")
    if out is not None:  # last: what took minutes is shown even where it cannot be written
        from reverie.results.plots import plot_cards

        save_card(card, out)
        typer.echo(f"figure in {plot_cards([out])[0]}", err=True)


@app.command("plot")
def plot_command(
    cards: Annotated[list[Path], typer.Argument(metavar="CARD...", help="Result cards (JSON).")],
    out: Annotated[Path | None, typer.Option(help="Folder for the figures; beside each card if absent.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the figure of each card."""
    from reverie.bench.card import BenchmarkCard
    from reverie.bench.figure import draw
    from reverie.results.plots import KINDS, plot_cards

    figures = [str(path) for path in plot_cards(cards, out, KINDS | {"benchmark": (BenchmarkCard, draw)})]
    typer.echo(json.dumps({"figures": figures}) if as_json else "\n".join(figures))
