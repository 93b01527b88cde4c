"""Small models that travel: one safetensors file with weights and recipe; and the example inside the package.

The example is a model trained by the recipe gsm_infinite/example, a held-out text of its task, and questions about it.
"""

from pathlib import Path
from typing import NamedTuple

from safetensors.torch import save_file

from reverie.errors import UserError
from reverie.files import write_atomic
from reverie.named import OutsideError
from reverie.results.card import load_card, save_card
from reverie.results.checkpoint import (
    Checkpoint,
    Progress,
    checkpoint_metadata,
    checkpoint_recipe,
    load_checkpoint,
    weights_by_name,
)
from reverie.results.run import CARD_NAME, load_run, trained_model
from reverie.tasks.base import TextTask

EXAMPLE = Path(__file__).parent.parent / "example"
WANTED = "a run of reverie train, a folder of reverie convert or adapt, example, or smollm2-notes"
MODEL, TEXT, QUESTIONS = "model.safetensors", "text.txt", "questions.txt"


def export_model(run: Path, out: Path) -> None:
    """Write the model of a run as one file: weights and resolved recipe, without what training alone needs."""
    checkpoint = load_run(run)
    weights = {name: x.contiguous() for name, x in weights_by_name(trained_model(checkpoint)).items()}
    told = checkpoint.progress
    done = Progress(step=told.step, tokens=told.tokens, wall_time_s=told.wall_time_s)
    metadata = checkpoint_metadata(checkpoint.recipe, done, weights)
    write_atomic(out, lambda temporary: save_file(weights, temporary, metadata=metadata))


def load_model_file(path: Path) -> Checkpoint:
    """The checkpoint, without what training needs, that `export_model` wrote; raises UserError for any other file."""
    try:
        return load_checkpoint(path)
    except UserError as error:
        if isinstance(error, OutsideError) or isinstance(error.__cause__, OSError):
            raise
        raise UserError(f"{path} holds no model that this version of reverie can read: give {WANTED}") from error


class ShippedText(NamedTuple):
    """What the example reads and is asked."""

    text: str
    questions: tuple[tuple[str, str], ...]  # and the right answers


def load_example_text(folder: Path = EXAMPLE) -> ShippedText:
    """The text and the questions of the example; raises UserError where the package holds none."""
    try:
        text = (folder / TEXT).read_text(encoding="utf-8")
        lines = (folder / QUESTIONS).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"there is no example at {folder}: {error.strerror}; install reverie again") from error
    pairs = tuple((question, answer) for question, _, answer in (line.partition("\t") for line in lines if line))
    return ShippedText(text, pairs)


def export_example(run: str | Path, out: str | Path, index: int) -> None:
    """Write the example's files: the model of a run, its card, and held-out text `index` of its task with questions."""
    run, out = Path(run), Path(out)
    export_model(run, out / MODEL)
    save_card(load_card(run / CARD_NAME), out / CARD_NAME)
    recipe = checkpoint_recipe(out / MODEL)
    if not isinstance(recipe.task, TextTask):
        raise UserError(f"recipe {recipe.name} has no texts with several questions: take gsm_infinite/example")
    text, questions = recipe.task.held_out_text(index)
    write_atomic(out / TEXT, f"{text}\n".encode())
    write_atomic(out / QUESTIONS, "".join(f"{question}\t{answer}\n" for question, answer in questions).encode())
