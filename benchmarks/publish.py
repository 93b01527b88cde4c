"""What the scripts of this folder share: options, where a card comes from, and what is left and printed at the end."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from reverie.errors import UserError
from reverie.files import write_atomic
from reverie.results.plots import save_figure
from reverie.results.provenance import commit_id, hardware


def options(
    description: str | None, out: str = "card (.json) to write, with a figure beside it if it has one"
) -> argparse.ArgumentParser:
    """A parser that knows --out and --json."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help=out)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return parser


def begin() -> Callable[[], dict[str, Any]]:
    """Note the commit and the time; what is returned gives a card its commit, date, machine and seconds since then."""
    commit, began = commit_id(), time.perf_counter()
    return lambda: {
        "commit": commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware().model_dump(),
        "wall_time_s": round(time.perf_counter() - began, 1),
    }


def publish(
    arguments: argparse.Namespace,
    card: dict[str, Any],
    text: Callable[[dict[str, Any]], str],
    result: Callable[[dict[str, Any]], dict[str, Any]],
    figure: Callable[[dict[str, Any]], Figure] | None = None,
) -> None:
    """Write the card, and its figure if it has one, if asked; print its text or, with --json, its result."""
    if arguments.out is not None:
        write_atomic(arguments.out, (json.dumps(card, indent=1) + "\n").encode())
        if figure is not None:
            save_figure(figure(card), arguments.out.with_suffix(".png"))
    print(json.dumps(result(card)) if arguments.json else text(card))


def run(main: Callable[[], None]) -> None:
    """Run a script; a UserError is one sentence on stderr."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
