"""The command line: a file for each group of commands. They parse and call, and import what they need when they run."""

import errno
import io
import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from reverie.cli.adapt import app as adapt_app
from reverie.cli.bench import app as bench_app
from reverie.cli.compile import app as compile_app
from reverie.cli.data import app as data_app
from reverie.cli.gsm_infinite import app as gsm_infinite_app
from reverie.cli.hf import app as hf_app
from reverie.cli.memory import app as memory_app
from reverie.cli.results import app as results_app
from reverie.cli.serve import app as serve_app
from reverie.cli.store import app as store_app
from reverie.cli.tasks import app as tasks_app
from reverie.cli.terminal import tell
from reverie.cli.train import app as train_app
from reverie.cli.watch import app as watch_app
from reverie.errors import OldFileWarning, ProcessDied, UntrainedWarning, UserError
from reverie.quiet import quietly, say_no_backends

app = typer.Typer(
    help="Language models that sleep: they consolidate a full context window into fast weights.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(train_app)
app.add_typer(adapt_app)
app.add_typer(results_app)
app.add_typer(tasks_app, name="tasks")
data_app.add_typer(gsm_infinite_app)
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(hf_app)
app.add_typer(memory_app)
app.add_typer(compile_app)
app.add_typer(store_app)
app.add_typer(serve_app)
app.add_typer(watch_app)


SPEED_MATTERS = ("train", "compare", "demo", "bench")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"reverie {version('reverie')}")
        raise typer.Exit


@app.callback()
def _options(
    command: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """What holds for all commands."""
    if command.invoked_subcommand not in SPEED_MATTERS:
        say_no_backends()


def _in_one_line(show: Callable[..., None]) -> Callable[..., None]:
    """`warnings.showwarning`, such that of an old file one line is said."""

    def shown(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
        if issubclass(category, OldFileWarning):
            tell(f"note: {message}")
        else:
            show(message, category, *where, **options)

    return shown


def main() -> None:
    """Every UserError is one sentence on stderr and exit code 2, and so is what the system refuses; the death of a
    process of several is exit code 1."""
    warnings.simplefilter("ignore", UntrainedWarning)  # commands say it in a sentence
    warnings.showwarning = _in_one_line(warnings.showwarning)
    os.environ["MPLBACKEND"] = "agg"  # figures go into files, whatever a notebook has set
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a terminal in another encoding lacks
    try:
        try:
            with quietly():
                app()
        finally:
            _flush()
    except Exception as error:
        if (sentence := _sentence(error)) is None:
            raise
        tell(f"error: {sentence}")
        sys.exit(1 if isinstance(error, ProcessDied) else 2)


def _flush() -> None:
    """Write what is left for stdout, which may be full; if its reader has gone, nobody misses it."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would try once more, and complain
        if error.errno != errno.EPIPE:
            raise UserError(f"cannot write to standard output: {error.strerror}") from error


def _sentence(error: Exception) -> str | None:
    """What to say of an error in the place of a traceback; None if it is a mistake of the program."""
    if isinstance(error, UserError | ProcessDied):
        return str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"the system refuses: {where}{error.strerror or error}"
    if isinstance(error, RecursionError):
        return "something that was given is nested too deeply"
    words = str(error).lower()
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("allocate memory" in words or "out of memory" in words)
    ):
        return "this needs more memory than there is: choose a smaller model, batch or window"
    return None
