"""One of the processes that train together: `torchrun --nproc-per-node N -m reverie.train RECIPE`.

The options are those of `reverie train`.
"""

import sys

import typer

from reverie.cli.app import app
from reverie.errors import UserError
from reverie.quiet import quietly
from reverie.train.launch import USER_ERROR, report_error, wait_for_the_cause
from reverie.train.torchrun import end_with_launcher, started_by_torchrun


def main() -> None:
    """Every UserError is one sentence, for the launcher or on stderr, and exit code 2."""
    if started_by_torchrun():
        end_with_launcher()
    try:
        with quietly():
            app(["train", *sys.argv[1:]])
    except UserError as error:
        if not report_error(str(error)):
            typer.echo(f"error: {error}", err=True)
        sys.exit(USER_ERROR)
    except Exception:
        if started_by_torchrun():
            wait_for_the_cause()
        raise


if __name__ == "__main__":
    main()
