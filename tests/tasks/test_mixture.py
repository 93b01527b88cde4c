"""Mixtures against the tasks that they are made of."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from reading_pages import asked, needs_smollm2

from reverie.tasks.hops import Hops
from reverie.tasks.mixture import Mixture, Part
from reverie.tasks.text_files import TextFiles

pytestmark = needs_smollm2


@pytest.fixture
def mixture(tmp_path: Path) -> Mixture:
    np.save(tmp_path / "x.npy", np.arange(1000))
    parts = [{"weight": 3, "task": {"name": "hops"}}, {"weight": 1, "task": {"name": "text", "path": str(tmp_path)}}]
    return Mixture.model_validate({"window_tokens": 48, "num_questions": 2, "parts": parts})


def kinds(mixture: Mixture, examples: range, split: Any = "train", seed: int = 0, step: int = 0) -> list[str]:
    return [page.questions[0].kind for page in mixture.pages(split, seed, step, examples)]


def test_parts_come_by_weight(mixture: Mixture) -> None:
    drawn = [kind for step in range(5) for kind in kinds(mixture, range(80), step=step)]
    counts = Counter(drawn)
    assert counts.keys() == {"hops/hops", "text/text"}
    assert abs(counts["hops/hops"] / 400 - 0.75) < 0.08  # 3.7 standard deviations
    assert drawn[:80] != drawn[80:160]  # steps differ


def test_an_example_is_that_of_its_task(mixture: Mixture) -> None:
    tasks = {part.task.name: part.task for part in mixture.parts}
    for example, page in enumerate(mixture.pages("test", 3, 4, range(20))):
        name = page.questions[0].kind.split("/")[0]
        (alone,) = tasks[name].pages("test", 3, 4, range(example, example + 1))  # type: ignore[index]
        assert page.tokens == alone.tokens
        assert page.facts == alone.facts
        assert [q._replace(kind=q.kind.split("/")[1]) for q in page.questions] == list(alone.questions)


def test_examples_do_not_depend_on_order_or_division(mixture: Mixture) -> None:
    pages = mixture.pages("train", 1, 2, range(12))
    assert mixture.pages("train", 1, 2, range(11, -1, -1)) == pages[::-1]
    assert mixture.pages("train", 1, 2, range(5, 8)) == pages[5:8]
    assert kinds(mixture, range(40), seed=1) != kinds(mixture, range(40), seed=2)
    assert kinds(mixture, range(40), split="train") != kinds(mixture, range(40), split="test")


def test_batch_holds_the_answers_of_all_parts(mixture: Mixture) -> None:
    batch = mixture.batch("train", 0, 0, range(16))
    pages = mixture.pages("train", 0, 0, range(16))
    assert batch.tokens.shape == (16, mixture.sequence_length) == (16, 48 * 3)
    for row, page in enumerate(pages):
        questions = asked(mixture, batch, row)
        assert len(questions) == min(2, len(page.questions))
        for (_, _, depth), question in zip(questions, page.questions, strict=False):
            assert depth == mixture.depth_of(question)
        scored = batch.loss_mask[row]
        assert batch.targets[row, scored].tolist() == [t for q in page.questions[:2] for t in q.answer]


def test_max_depth_reaches_the_parts(mixture: Mixture) -> None:
    pages = mixture.pages("train", 0, 0, range(10), max_depth=1)
    assert {mixture.depth_of(q) for page in pages for q in page.questions} == {1}


def test_depths_and_chance_are_those_of_the_parts(mixture: Mixture) -> None:
    assert mixture.depths() == range(1, 5)
    assert mixture.chance() == pytest.approx({1: 0.75 / 15, 2: 1 / 15, 3: 1 / 15, 4: 1 / 15})
    assert mixture.chance_exact() == pytest.approx(0.75 / 15**2)


def test_settings_come_back_from_json(mixture: Mixture) -> None:
    assert Mixture.model_validate_json(mixture.model_dump_json()) == mixture
    assert all(part.task.window_tokens == 48 for part in mixture.parts)


class Whispers(Hops):
    """A task that no part of the package knows."""


def test_a_part_may_be_from_outside_the_package() -> None:
    mixture = Mixture.model_validate({"parts": [{"task": {"name": f"{__name__}:Whispers"}}]})
    assert type(mixture.parts[0].task) is Whispers
    assert kinds(mixture, range(1)) == [f"{__name__}:Whispers/hops"]
    assert Mixture.model_validate_json(mixture.model_dump_json()) == mixture


def test_parts_that_disagree_are_refused() -> None:
    with pytest.raises(ValidationError, match="window_tokens of part hops is 41, it must be the mixture's, 48"):
        Mixture(window_tokens=48, parts=(Part(task=Hops()),))
    with pytest.raises(ValidationError, match="num_windows of part text is 2, it must be the mixture's, 1"):
        Mixture(parts=(Part(task=TextFiles(path="x", num_windows=2, num_questions=4)),))
    with pytest.raises(ValidationError, match="weight"):
        Mixture.model_validate({"parts": [{"weight": 0, "task": {"name": "hops"}}]})
    with pytest.raises(ValidationError, match="depo"):
        Mixture.model_validate({"parts": [{"task": {"name": "depo"}}]})
    with pytest.raises(ValidationError, match="parts"):
        Mixture.model_validate({"parts": []})
