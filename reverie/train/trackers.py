"""Trackers: what follows a run and shows its curve, such as TensorBoard. A recipe names them in `train.trackers`."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from reverie.errors import UserError
from reverie.named import OutsideError, find_named
from reverie.recipe import Recipe

_OURS = {"tensorboard": "reverie.train.board:TensorBoard", "wandb": "reverie.train.wandb_run:Wandb"}
_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}


class Tracker(Protocol):
    """Follows a run, in the process that reports. Any exception that it raises ends the run in one sentence."""

    def begin(self, out: Path, recipe: Recipe, first_step: int) -> None:
        """Begin before the first step of this call.

        A run that goes on from a checkpoint measures the points after it again: of those that are there already, the
        ones from `first_step` on are to be replaced, or the new ones left out.

        Args:
            out: the folder of the run.
            first_step: 1, or the step after the checkpoint's.
        """
        ...

    def point(self, point: Mapping[str, Any]) -> None:
        """Write a point of the card's curve, at once; `scalars` has its numbers by name."""
        ...

    def end(self) -> None:
        """Close what is open, whether the run is done, or was stopped, or has failed."""
        ...


def scalars(point: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a point of the card's curve by name, such as "loss/held-out"."""
    score = point["score"]
    values = {
        "loss/train": point["train_loss"],
        "loss/held-out": score["loss"],
        "accuracy/exact": score["exact_accuracy"],
        **{f"accuracy/depth {depth}": part["accuracy"] for depth, part in score["by_depth"].items()},
        "curriculum/deepest": point["depth"],
        "gradient/norm": point["gradient_norm"],
    }
    for name, passes in (point["passes"] or {}).items():
        values |= {f"sleep/{name}, pass {n}": value for n, value in enumerate(passes, start=1)}
    return values


def find_trackers(names: Sequence[str]) -> dict[str, Callable[[], Tracker]]:
    """What makes the trackers of these names.

    Raises:
        UserError: a package is missing, or what a name names cannot be had.
    """
    return {name: _found(name) for name in names}


@contextlib.contextmanager
def following(
    trackers: Mapping[str, Callable[[], Tracker]], out: Path, recipe: Recipe, first_step: int
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Begin them all, and end them after the block; gives what writes a point to each.

    Raises:
        UserError: one fails, as on a full disk.
    """
    begun: dict[str, Tracker] = {}

    def write(point: Mapping[str, Any]) -> None:
        for name, tracker in begun.items():
            with _telling(name):
                tracker.point(point)

    with contextlib.ExitStack() as ends:
        for name, make in trackers.items():
            with _telling(name):
                tracker = make()
                tracker.begin(out, recipe, first_step)
            begun[name] = tracker
            ends.enter_context(_ended(name, tracker))
        yield write


@contextlib.contextmanager
def _ended(name: str, tracker: Tracker) -> Iterator[None]:
    try:
        yield
    finally:
        with _telling(name):
            tracker.end()


@contextlib.contextmanager
def _telling(name: str) -> Iterator[None]:
    """Turn any error in the block into a sentence that names the tracker."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        words = " ".join(str(error).split())
        raise UserError(f"the tracker {name} failed: {type(error).__name__}: {words}".rstrip(": ")) from error


def _found(name: str) -> Callable[[], Tracker]:
    if (package := _PACKAGES.get(name)) is not None:
        try:
            importlib.import_module(package)
        except ImportError:
            raise UserError(
                f"train.trackers has {name}, which needs the package {package}: install it, or leave {name} out"
            ) from None
    tracker = find_named(_OURS.get(name, name), "train.trackers")
    missing = [method for method in ("begin", "point", "end") if not callable(getattr(tracker, method, None))]
    if not isinstance(tracker, type) or missing:
        lacking = f"it lacks {', '.join(missing)}" if missing else "it is none"
        raise OutsideError(f"{name} in train.trackers must be a class with begin, point and end: {lacking}")
    return tracker
