"""The runs of a comparison: one process each, then one card for all."""

import contextlib
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

from reverie.errors import UserError
from reverie.results.card import ComparisonCard, Metric, RunCard, load_card, save_card
from reverie.results.comparison import compare_runs
from reverie.results.run import CARD_NAME
from reverie.train.plan import Run
from reverie.train.worker import Event, child, finished

FIGURE_NAME = "figure.png"


def compare(
    name: str,
    metric: Metric,
    runs: Sequence[Run],
    out: Path,
    *,
    jobs: int,
    device: str = "cpu",
    report: Callable[[Run, Event], None] = lambda run, event: None,
) -> ComparisonCard:
    """Train what is not trained yet, `jobs` runs at a time; leave card and figure in `out`.

    Finished runs in `out` are used as they are and broken-off ones go on where they stopped.

    Raises:
        UserError: a run failed; the others that were going are stopped, and can be taken up again.
    """
    waiting = [run for run in runs if finished(run.recipe, run.out) is None]
    going: dict[Any, tuple[Run, BaseProcess]] = {}
    with (
        contextlib.ExitStack() as children,
        contextlib.ExitStack() as stops,  # all at once, before any is waited for: each still finishes its step
    ):
        while waiting or going:
            while waiting and len(going) < jobs:
                run = waiting.pop(0)
                process, events = children.enter_context(child(run.recipe, run.out, device))
                stops.callback(process.terminate)
                going[events] = run, process
            for events in wait([*going]):
                run, process = going[events]
                try:
                    event = cast(Any, events).recv()
                except (EOFError, OSError):  # it has ended, perhaps killed while it sent
                    del going[events]
                    process.join()
                    event = f"its process ended (exit code {process.exitcode})" if process.exitcode else None
                if isinstance(event, str):
                    raise UserError(f"run {run.name} failed: {event}")
                if event is not None:
                    report(run, event)
    cards = [(load_card(run.out / CARD_NAME), {"settings": dict(run.settings)}) for run in runs]
    card = compare_runs(name, metric, [card.model_copy(update=own) for card, own in cards if isinstance(card, RunCard)])
    save_card(card, out / CARD_NAME)
    from reverie.results.plots import figure, save_figure  # half a second that no other command need wait

    save_figure(figure(card), out / FIGURE_NAME)
    return card
