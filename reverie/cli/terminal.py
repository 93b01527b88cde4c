"""Consoles that commands share, and how a signal ends a command."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from reverie.errors import UNTRAINED, visible
from reverie.interrupts import exit_code, sigterm_interrupts
from reverie.train.torchrun import is_first


class VisibleConsole(Console):
    """A console on which control characters of what it prints cannot steer the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)


out_console = VisibleConsole(quiet=not is_first())
err_console = VisibleConsole(quiet=not is_first(), stderr=True)  # progress, so that --json leaves stdout to the result


def say(text: str, *, nl: bool = True) -> None:
    """Print on stdout what may have come from a file or a model."""
    typer.echo(visible(text), nl=nl)


def tell(text: str) -> None:
    """Print a line about what happens on stderr."""
    typer.echo(visible(text), err=True)


def tell_if_untrained(remembers: bool, folder: str | Path | None = None) -> None:
    """Say of a model that does not remember that it does not; and how to train it, where it is one of transformers."""
    if not remembers:
        to_train = folder is not None and (Path(folder) / "config.json").is_file()
        tell(UNTRAINED + (f"; train them: reverie adapt {folder} --data notes" if to_train else ""))


def show(as_json: bool, result: Any, *parts: RenderableType) -> None:
    """Print a result as JSON, or these parts of a page."""
    if as_json:
        say(result.model_dump_json() if hasattr(result, "model_dump_json") else json.dumps(result))
    else:
        for part in parts:
            out_console.print(part)


@contextlib.contextmanager
def interruptible(advice: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end with advice, and with exit code 130 or 143; time that is up, with exit code 0.

    Notes of the interruption, which know more, are said in the place of the advice.
    """
    try:
        with sigterm_interrupts():
            yield
    except KeyboardInterrupt as interruption:
        if is_first():
            known = getattr(interruption, "__notes__", [advice])
            tell(f"{str(interruption) or 'interrupted'}; {'; '.join(known)}")
        raise typer.Exit(exit_code(interruption)) from None
