"""A model on disk, ready to use: what `reverie read`, `ask` and `chat` begin with.

model = load_model("runs/gsm_infinite/nano")
memory = sleep_over(model, [model.text(open("book.txt").read())])
logits, context = read(model, question, memory.context, model.sleep_config)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor

from reverie.errors import UserError
from reverie.memory.file import read_info
from reverie.memory.memory import Memory
from reverie.model import SleepingModel, State
from reverie.pretrained.shipped import place_of
from reverie.results.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from reverie.results.run import trained_model
from reverie.sleep import SleepConfig
from reverie.sleep.compiled import take_compiled
from reverie.talk.shipped import EXAMPLE, MODEL, WANTED, load_model_file
from reverie.tasks.language import Language


@dataclass(frozen=True, eq=False)
class Sleeper:
    """A model, how it sleeps, and how it is spoken to; itself a `SleepingModel`."""

    name: str
    sleeping: SleepingModel
    sleep_config: SleepConfig
    language: Language
    device: torch.device
    int8: bool = False  # products of a single row are of int8

    @property
    def num_blocks(self) -> int:
        return self.sleeping.num_blocks

    @property
    def fast_weight_blocks(self) -> Sequence[int]:
        return self.sleeping.fast_weight_blocks

    def embed(self, tokens: Tensor) -> Tensor:
        return self.sleeping.embed(tokens)

    @property
    def reads_embedded(self) -> bool:
        return getattr(self.sleeping, "reads_embedded", False)

    @property
    def injects(self) -> bool:
        return getattr(self.sleeping, "injects", False)

    def inject(self, n: int, h: Tensor, embedded: Tensor) -> Tensor:
        return cast(Any, self.sleeping).inject(n, h, embedded)

    def blocks(self, h: Tensor, state: State, start: int, stop: int, **call: Any) -> tuple[Tensor, State]:
        return self.sleeping.blocks(h, state, start, stop, **call)

    def head(self, h: Tensor) -> Tensor:
        return self.sleeping.head(h)

    @property
    def awake(self) -> dict[int, Any]:
        """What was compiled of the model."""
        return getattr(self.sleeping, "awake", {})

    def __getattr__(self, name: str) -> Any:
        """What only some models have."""
        if name == "embed_blocks":
            return getattr(self.sleeping, name)
        raise AttributeError(f"a Sleeper has no {name}")

    def encode(self, text: str) -> list[int]:
        return self.language.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.language.decode(ids)

    def text(self, text: str) -> Int[Tensor, " T"]:
        """Token ids of a text that is read from its beginning, padded as in training.

        Raises:
            UserError: it holds no token, or words that the model does not know.
        """
        ids = self.encode(text)
        if not ids:
            raise UserError("there is nothing to read: the text is empty")
        return torch.tensor(self.language.padded(ids, self.sleep_config.window_size), device=self.device)

    def question(self, text: str, *, begun: bool = False) -> list[int]:
        """Token ids of what is to be answered, after earlier turns if `begun`; raises as `text` does."""
        ids = self.language.question(text, begun=begun)
        if not ids:
            raise UserError("there is nothing to answer: the question is empty")
        return ids


def load_model(place: str | Path, device: torch.device | str = "cpu", *, int8: bool = False) -> Sleeper:
    """Any model on disk, of reverie or of transformers, in evaluation mode.

    Args:
        place: the folder of a run of `reverie train`; a folder of `reverie convert` or of `save_pretrained`, with its
            tokenizer; a file of `export_model`; or a name of what ships with the package: "example" or "smollm2-notes".
        int8: write tokens by products in int8 (`reverie.hf.quantize_awake`); of a model of transformers, on the CPU.

    Raises:
        UserError: there is none of these, or it is damaged, or a model of transformers that does not sleep.
    """
    where, path = torch.device(device), Path(place_of(place))
    if (path / "config.json").is_file() and find_checkpoint(path) is None:
        return _of_transformers(path, where, int8=int8)
    loaded = _of_reverie(place, path, where)
    if int8:
        raise UserError(f"int8 is for models of transformers, whose weights are large, and {place} holds none")
    return loaded


def load_memory(path: Path, sleeper: Sleeper) -> Memory:
    """The memory in a file, which goes on with the passes and the tolerance that it was made with.

    With int8 it may be one that the same model made in other numbers, such as in float32.

    Raises:
        UserError: it is none, or is of another model, or of other windows than those of the model.
    """
    made = read_info(path).config
    passes = {"num_sleep_passes": made.num_sleep_passes, "tolerance": made.tolerance}
    config = sleeper.sleep_config.model_copy(update=passes)
    return Memory.load(path, sleeper, config, approximate=sleeper.int8)


def _of_reverie(place: str | Path, path: Path, where: torch.device) -> Sleeper:
    if str(place) == "example":
        return _of_task(load_model_file(EXAMPLE / MODEL), "example", where)
    if path.is_file():
        return _of_task(load_model_file(path), path.stem, where)
    if path.is_dir() and (found := find_checkpoint(path)) is not None:
        checkpoint = load_checkpoint(found)
        recipe, folder = checkpoint.recipe.name, path.resolve().name
        return _of_task(checkpoint, folder if recipe.endswith(folder) else f"{recipe} {folder}", where)
    raise UserError(f"there is no model at {place}: give {WANTED}")


def _of_task(checkpoint: Checkpoint, name: str, device: torch.device) -> Sleeper:
    recipe, model = checkpoint.recipe, trained_model(checkpoint, device)
    take_compiled(model, recipe.sleep)
    return Sleeper(name, model.eval(), recipe.sleep, recipe.task.language(), device)


def _of_transformers(folder: Path, device: torch.device, *, int8: bool) -> Sleeper:
    try:
        from reverie.hf.language import load_speaker
    except ImportError:
        raise UserError("this needs the package transformers; run pip install 'reverie[hf]'") from None
    model, config, language = load_speaker(folder, device, int8=int8)
    take_compiled(model, config)
    return Sleeper(folder.name, model, config, language, device, int8)
