"""The command line: a file for each group of commands. They parse and call, and import what they need when they run."""

import sys
import warnings

import typer

from reverie.cli.adapt import app as adapt_app
from reverie.cli.bench import app as bench_app
from reverie.cli.data import app as data_app
from reverie.cli.gsm_infinite import app as gsm_infinite_app
from reverie.cli.hf import app as hf_app
from reverie.cli.memory import app as memory_app
from reverie.cli.results import app as results_app
from reverie.cli.store import app as store_app
from reverie.cli.tasks import app as tasks_app
from reverie.cli.train import app as train_app
from reverie.cli.watch import app as watch_app
from reverie.errors import ProcessDied, UntrainedWarning, UserError
from reverie.quiet import quietly, say_no_backends

app = typer.Typer(
    help="Language models that sleep: they consolidate a full context window into fast weights.",
    no_args_is_help=True,
    add_completion=False,
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
app.add_typer(store_app)
app.add_typer(watch_app)


SPEED_MATTERS = ("train", "compare", "demo", "bench")


@app.callback()
def _options(command: typer.Context) -> None:
    """Nothing to set for all commands; makes typer show their list."""
    if command.invoked_subcommand not in SPEED_MATTERS:
        say_no_backends()


def main() -> None:
    """Every UserError is one sentence on stderr and exit code 2; the death of a process of several exit code 1."""
    warnings.simplefilter("ignore", UntrainedWarning)  # commands say it in a sentence
    try:
        with quietly():
            app()
    except (UserError, ProcessDied) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2 if isinstance(error, UserError) else 1)
