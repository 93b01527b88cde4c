"""`reverie bench`: parses and calls; no logic."""

from pathlib import Path
from typing import Annotated

import typer

from reverie.cli.options import AsJson
from reverie.cli.progress import PartDisplay
from reverie.cli.terminal import err_console, show

app = typer.Typer(
    help="Measure speed and memory beside what others ship and beside the machine's limits.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


COMMANDS = {
    "ops": "The gated delta rule beside transformers' and fla's plain torch functions, T 64 to 4096.",
    "train": "Tokens/s of a training step beside transformers' hybrids of the same sizes.",
    "sleep": "Measure N passes of a training step, in units of one ordinary pass over the same text.",
    "memory": "Peak memory of a training step over windows and passes, with and without activation checkpointing.",
    "wake": "Time and memory of a token awake after 1,000 to 1,000,000 consolidated tokens.",
    "decode": "A token awake, compiled or not, beside transformers' hybrids and its matrix products, B 1 to 32.",
    "pretrained": "A token of SmolLM2 awake, with layers that remember and in int8, beside the untouched model.",
    "read": "Consolidation by passes and window size, SmolLM2 too, beside prefill of models that do not sleep.",
    "serve": "A server under load and SIGKILLs, and the first token of turn 20 of a long session beside turn 1.",
}


def _add_command(name: str, help: str) -> None:
    @app.command(name, help=help)
    def command(
        out: Annotated[Path | None, typer.Option(metavar="CARD", help="Card (JSON) to write.")] = None,
        as_json: AsJson = False,
    ) -> None:
        from reverie.bench.run import run_benchmark
        from reverie.bench.tables import rich_tables
        from reverie.results.card import save_card

        with PartDisplay(err_console, name) as display:
            card = run_benchmark(name, display.update)
        show(as_json, card.result(), rich_tables(card))
        if out is not None:  # last: what took minutes is shown even where it cannot be written
            save_card(card, out)


for _name, _help in COMMANDS.items():
    _add_command(_name, _help)
