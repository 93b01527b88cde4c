"""`reverie compile`: parses and calls; no logic."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from reverie.cli.options import AsJson
from reverie.cli.terminal import err_console, interruptible, say

app = typer.Typer(rich_markup_mode=None)


@app.command("compile")
def compile_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="As for reverie ask; one of reverie's own models.")],
    rows: Annotated[int, typer.Option(min=1, max=4096, help="Texts side by side, B.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Compile a token awake, once, for ask, chat and generate; says what a token takes before and after.

    The same answers, to rounding. The file is in the cache of reverie, for this machine and this version of torch.
    """
    from reverie.bench.compiled import compile_and_measure
    from reverie.talk import load_model

    with interruptible("nothing is compiled"), err_console.status("compiling"):
        done = compile_and_measure(load_model(model), rows)
    say(json.dumps(asdict(done) | {"file": str(done.file)}) if as_json else done.sentence())
