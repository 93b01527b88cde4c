"""`reverie plot`: which kinds of cards there are, and who draws them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from reverie.cli.terminal import AsJson

app = typer.Typer(rich_markup_mode=None)


def draw_cards(cards: list[Path], out: Path | None = None) -> list[Path]:
    """The figure of each card, of whatever kind, beside it or in the folder `out`."""
    from reverie.bench.card import BenchmarkCard
    from reverie.bench.figure import draw
    from reverie.results.plots import KINDS, plot_cards  # half a second that no other command need wait

    return plot_cards(cards, out, KINDS | {"benchmark": (BenchmarkCard, draw)})


@app.command("plot")
def plot_command(
    cards: Annotated[list[Path], typer.Argument(metavar="CARD...", help="Result cards (JSON).")],
    out: Annotated[Path | None, typer.Option(help="Folder for the figures; beside each card if absent.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the figure of each card."""
    figures = [str(path) for path in draw_cards(cards, out)]
    typer.echo(json.dumps({"figures": figures}) if as_json else "\n".join(figures))
