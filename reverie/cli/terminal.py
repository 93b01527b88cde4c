"""What commands have in common: consoles, options that mean the same everywhere, and how a signal ends them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated

import torch
import typer
from rich.console import Console

from reverie.errors import UserError
from reverie.interrupts import exit_code, sigterm_interrupts
from reverie.train.distributed import is_first

out_console = Console(quiet=not is_first())
err_console = Console(quiet=not is_first(), stderr=True)  # progress, so that --json leaves stdout to the result

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. sleep.num_sleep_passes=4.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")]


def device_named(name: str) -> torch.device:
    """What --device says. Raises UserError for anything else, or for a CUDA device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no CUDA device here; use --device cpu")
    if name not in ("cpu", "cuda"):
        raise UserError(f"--device must be cpu, cuda or auto, got {name!r}")
    return torch.device(name)


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
