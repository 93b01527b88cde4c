"""`reverie bench`: parses and calls; no logic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from reverie.cli.options import AsJson
from reverie.cli.progress import PartDisplay
from reverie.cli.terminal import err_console, out_console

app = typer.Typer(
    help="Measure speed and memory beside what others ship and beside the machine's limits.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Out = Annotated[Path | None, typer.Option(metavar="CARD", help="Card (JSON) to write.")]


@app.command("ops")
def ops_command(out: Out = None, as_json: AsJson = False) -> None:
    """The gated delta rule beside transformers' and fla's plain torch functions, T 64 to 4096."""
    _bench("ops", out, as_json)


@app.command("train")
def train_command(out: Out = None, as_json: AsJson = False) -> None:
    """Tokens/s of a training step beside transformers' hybrids of the same sizes."""
    _bench("train", out, as_json)


@app.command("sleep")
def sleep_command(out: Out = None, as_json: AsJson = False) -> None:
    """Measure N passes of a training step, in units of one ordinary pass over the same text."""
    _bench("sleep", out, as_json)


@app.command("memory")
def memory_command(out: Out = None, as_json: AsJson = False) -> None:
    """Peak memory of a training step over windows and passes, with and without activation checkpointing."""
    _bench("memory", out, as_json)


@app.command("wake")
def wake_command(out: Out = None, as_json: AsJson = False) -> None:
    """Time and memory of a token awake after 1,000 to 1,000,000 consolidated tokens."""
    _bench("wake", out, as_json)


def _bench(name: str, out: Path | None, as_json: bool) -> None:
    from reverie.bench.run import run_benchmark
    from reverie.bench.tables import rich_tables
    from reverie.results.card import save_card

    with PartDisplay(err_console, name) as display:
        card = run_benchmark(name, display.update)
    if as_json:
        typer.echo(json.dumps(card.result()))
    else:
        out_console.print(rich_tables(card))
    if out is not None:  # last: what took minutes is shown even where it cannot be written
        save_card(card, out)
