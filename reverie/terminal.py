"""What commands have in common: consoles, options that mean the same everywhere, and how a signal ends them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console

from reverie.train.distributed import is_first
from reverie.train.stop import exit_code, sigterm_interrupts

out_console = Console(quiet=not is_first())
err_console = Console(quiet=not is_first(), stderr=True)  # progress, so that --json leaves stdout to the result

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. sleep.num_sleep_passes=4.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@contextlib.contextmanager
def interruptible(advice: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end with advice, and with exit code 130 or 143."""
    try:
        with sigterm_interrupts():
            yield
    except KeyboardInterrupt as interruption:
        if is_first():
            typer.echo(f"{str(interruption) or 'interrupted'}; {advice}", err=True)
        raise typer.Exit(exit_code(interruption)) from None
