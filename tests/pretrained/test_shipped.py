"""The adapter inside the package: it reads a page that no generator wrote, and remembers most of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from reading_pages import needs_smollm2

from reverie.memory.memory import Memory, sleep_over
from reverie.pretrained.shipped import SHIPPED, place_of
from reverie.talk.answer import ask
from reverie.talk.shipped import load_example_text
from reverie.talk.sleeper import load_model

pytestmark = pytest.mark.hf

BY_HAND = Path(__file__).parents[2] / "benchmarks" / "by_hand"
FLOOR = 26  # of the 50 questions about two pages


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_small_and_has_a_card(name: str) -> None:
    files = {path.name: path.stat().st_size for path in Path(place_of(name)).iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md"} <= files.keys()
    assert sum(files.values()) < 20e6


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(place_of("smollm2-notes")).is_absolute()
    (tmp_path / "smollm2-notes").mkdir()
    assert place_of("smollm2-notes") == "smollm2-notes"
    assert place_of("another") == "another"


@pytest.mark.slow
@needs_smollm2
def test_it_remembers_pages_written_by_hand() -> None:
    sleeper, right, right_of_nothing = load_model("smollm2-notes"), 0, 0
    for name in ("diary", "flat"):
        page, questions = load_example_text(BY_HAND / name)

        def count(memory: Memory, questions: Any = questions) -> int:
            answers = ask(sleeper, memory, [question for question, _ in questions], max_tokens=24)
            assert sum(len(answer.ids) == 24 for answer in answers) <= 2  # they end by themselves
            return sum(
                re.search(rf"(?<!\w){re.escape(wanted.casefold())}(?!\w)", answer.text.casefold()) is not None
                for answer, (_, wanted) in zip(answers, questions, strict=True)
            )

        right += count(sleep_over(sleeper, [sleeper.text(page)]))
        right_of_nothing += count(Memory.empty(sleeper))
    assert right >= FLOOR
    assert right_of_nothing <= 1
