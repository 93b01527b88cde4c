"""Consoles that commands share, and how a signal ends a command."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType

from reverie.errors import UNTRAINED
from reverie.interrupts import exit_code, sigterm_interrupts
from reverie.train.torchrun import is_first

out_console = Console(quiet=not is_first())
err_console = Console(quiet=not is_first(), stderr=True)  # progress, so that --json leaves stdout to the result


def tell_if_untrained(remembers: bool, folder: str | Path | None = None) -> None:
    """Say of a model that does not remember that it does not; and how to train it, where it is one of transformers."""
    if not remembers:
        to_train = folder is not None and (Path(folder) / "config.json").is_file()
        typer.echo(UNTRAINED + (f"; train them: reverie adapt {folder} --data notes" if to_train else ""), err=True)


def show(as_json: bool, result: Any, *parts: RenderableType) -> None:
    """Print a result as JSON, or these parts of a page."""
    if as_json:
        typer.echo(result.model_dump_json() if hasattr(result, "model_dump_json") else json.dumps(result))
    else:
        for part in parts:
            out_console.print(part)


@contextlib.contextmanager
def interruptible(advice: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end with advice, and with exit code 130 or 143; time that is up, with exit code 0."""
    try:
        with sigterm_interrupts():
            yield
    except KeyboardInterrupt as interruption:
        if is_first():
            typer.echo(f"{str(interruption) or 'interrupted'}; {advice}", err=True)
        raise typer.Exit(exit_code(interruption)) from None
