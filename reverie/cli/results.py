"""`reverie eval` and `plot`: parse and call; no logic."""

import json
from pathlib import Path
from typing import Annotated

import typer

from reverie.cli.options import AsJson, Device, device_named, passes_list, tolerance_list
from reverie.cli.progress import PartDisplay
from reverie.cli.terminal import err_console, say, show, tell
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
    if len(runs) == 1 and tolerance is None and out is None and len(numbers or [1]) == 1:
        from reverie.results.run import evaluate_run
        from reverie.results.tables import depth_table

        N = numbers[0] if numbers else None
        card = evaluate_run(runs[0], num_sleep_passes=N, num_examples=examples, device=device_named(device))
        return show(as_json, card, depth_table(card))
    if numbers is None:
        raise UserError("several runs, --tolerance and --out need --passes, such as --passes 1..8")
    if out is not None and out.suffix != ".json":
        raise UserError(f"--out must be the card's file and end in .json, got {out}; the figure is drawn beside it")
    tolerances, where = [] if tolerance is None else tolerance_list(tolerance), device_named(device)
    from reverie.results.card import save_card
    from reverie.results.passes.evaluation import evaluate_passes
    from reverie.results.tables import passes_tables

    with PartDisplay(err_console, "eval") as display:
        found = evaluate_passes(runs, numbers, tolerances, num_examples=examples, device=where, report=display.update)
    show(as_json, found, *(part for table in passes_tables(found) for part in (table, "")))
    if out is not None:  # last: what took minutes is shown even where it cannot be written
        from reverie.results.plots import plot_cards

        save_card(found, out)
        tell(f"figure in {plot_cards([out])[0]}")


@app.command("plot")
def plot_command(
    cards: Annotated[list[Path], typer.Argument(metavar="CARD...", help="Result cards (JSON).")],
    out: Annotated[Path | None, typer.Option(help="Folder for the figures; beside each card if absent.")] = None,
    together: Annotated[bool, typer.Option("--together", help="All runs in one figure, together.png.")] = False,
    as_json: AsJson = False,
) -> None:
    """Draw the figure of each card, or one of all."""
    if together:
        from reverie.results.together import plot_together

        figures = [str(plot_together(cards, out))]
    else:
        from reverie.results.plots import plot_cards

        figures = [str(path) for path in plot_cards(cards, out)]
    say(json.dumps({"figures": figures}) if as_json else "\n".join(figures))
