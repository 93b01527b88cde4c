"""TensorBoard curves of a run."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from reverie.files import writing


@contextlib.contextmanager
def board(out: Path, first_step: int) -> Iterator[SummaryWriter]:
    """A writer, from that step on. Raises UserError where it cannot write, as on a full disk."""
    folder = out / "tensorboard"
    with writing(folder):
        # It writes when we flush: by itself it would do so in a thread of its own, with errors that nobody can catch.
        writer = SummaryWriter(str(folder), purge_step=first_step, flush_secs=10**6)
    try:
        yield writer
    finally:
        with writing(folder):
            writer.close()


def write_point(writer: SummaryWriter, point: Mapping[str, Any]) -> None:
    """A point of the card's curve, at once: a resumed run does not measure it again."""
    score, step = point["score"], point["step"]
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
    with writing(Path(writer.log_dir)):
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()
