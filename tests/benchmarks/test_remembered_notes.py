"""What is remembered of notes beside controls: how answers are judged, what controls are shown, and a tiny run."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from reading_pages import decode, needs_smollm2
from tiny_adapter import W, tiny_adapter, tiny_base

from reverie.files import CACHE
from reverie.hf import load
from reverie.pretrained.speaker import speaker_of
from reverie.recipe import changed
from reverie.results.checkpoint import FILE_NAME, load_checkpoint
from reverie.sleep import Context, consolidate
from reverie.sleep.generate import write
from reverie.tasks.notes import Notes
from reverie.tasks.reading import TokenQuestion
from reverie.train.run import train

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
bench: Any = importlib.import_module("remembered_notes")

pytestmark = [pytest.mark.hf, needs_smollm2]

PAGE = (
    "The shed opens with 7314. Oskar has the tent. Nadia plays the cello. The cat is called Biscuit. We met on Friday."
)


@pytest.mark.parametrize(
    ("written", "words", "right"),
    [
        ("It is platform 6.", " 6", True),
        ("It is platform 631.", " 6", False),
        ("a Beekeeper near Oslo", " beekeeper", True),
        ("beekeepers", " beekeeper", False),
        ("costs 4.80 euros", " 4.80", True),
        ("costs 4x80 euros", " 4.80", False),
        ("", " cello", False),
    ],
)
def test_words_count_as_words(written: str, words: str, right: bool) -> None:
    assert bench.says(written, words) is right


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("What does the cat eat, and how is the cat called?", "The cat is called Biscuit."),
        ("Q: Who has the tent? A:", "Oskar has the tent."),
        ("\nNadia plays the", "Nadia plays the cello."),
    ],
)
def test_the_search_finds_the_sentence_with_the_rare_words(question: str, sentence: str) -> None:
    found = bench.best_sentences(PAGE, question)
    assert sentence in found
    assert found.count(".") == bench.SENTENCES
    assert PAGE.index(found[:10]) >= 0  # in the order of the page


@pytest.mark.parametrize("name", bench.PAGES_BY_HAND)
def test_every_answer_about_a_page_by_hand_stands_in_it_and_its_questions_end_where_an_answer_begins(name: str) -> None:
    speaker = speaker_of("smollm2")
    page = bench.page_by_hand(speaker, name)
    text, turn = decode(page.tokens), speaker.turn("\0")
    assert len(page.questions) == len({question.about for question in page.questions}) == 25
    for question in page.questions:
        assert bench.says(text, decode(question.words))
        assert decode(question.prompt) == turn.replace("\0", question.about)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(tmp_path_factory.mktemp("cache")))
        train(changed(tiny_adapter(tiny_base(tmp_path_factory.mktemp("base"))), train={"steps": 2}), out)
    return out


def test_the_untouched_model_is_shown_the_text_before_the_question(run: Path) -> None:
    recipe = load_checkpoint(run / FILE_NAME).recipe
    side = bench._side(load(run / "adapter"), recipe, recipe.task)
    for prompt, wanted in (
        ("\nThe cat is called", f"{PAGE}\nThe cat is called"),
        (side.speaker.turn("Who?"), side.speaker.turn(f"{PAGE}\nWho?")),
    ):
        question = TokenQuestion(tuple(side.speaker.encode(prompt)[0]), (), "", "", None, None)
        assert side.text(bench._with_text(side, PAGE, question, lambda page, question: page)) == wanted


@pytest.mark.slow
def test_shares_are_those_of_questions_asked_one_by_one(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(bench, "WINDOWS", (1, 2))
    monkeypatch.setattr(bench, "BETWEEN", (0, 1))
    monkeypatch.setattr(bench, "PASSES", (1,))
    three = bench.story_windows(speaker_of("smollm2"), W)[:3]
    monkeypatch.setattr(bench, "story_windows", lambda *_: three)
    monkeypatch.setattr(bench, "WRITTEN", 6)
    out = tmp_path / "card.json"
    monkeypatch.setattr(sys, "argv", ["remembered_notes.py", str(run), "--pages", "2", "--out", str(out)])
    bench.main()
    card = json.loads(out.read_text())
    assert out.with_suffix(".png").exists()
    scores = {name: found[0] for name, found in card["scores"].items()}
    assert scores["sides"].keys() == {bench.MEMORY, bench.EMPTY, bench.CONTEXT, bench.SEARCH}
    assert scores["between"].keys() == {"0", str(W)}
    assert scores["windows"]["1"] == scores["between"]["0"] == scores["between_story"]["0"] == scores["passes"]["1"]
    recipe, model = load_checkpoint(run / FILE_NAME).recipe, bench.load(run / "adapter")
    assert isinstance(recipe.task, Notes)
    counted: dict[str, list[bool]] = {}
    with torch.no_grad():
        for page in recipe.task.pages("test", 0, 0, range(2)):
            memory = consolidate(
                model.sleeping, torch.tensor([page.tokens]), Context.empty(model.sleeping), recipe.sleep
            )
            for q in page.questions:
                ids = write(model.sleeping, torch.tensor([q.prompt]), memory, recipe.sleep, 6)[0][0].tolist()
                counted.setdefault(q.kind, []).append(tuple(ids[: len(q.answer)]) == q.answer)
    assert {kind: (len(x), sum(x) / len(x)) for kind, x in counted.items()} == {
        kind: (x["questions"], x["exact"]) for kind, x in scores["sides"][bench.MEMORY].items() if "by hand" not in kind
    }
    for name in bench.PAGES_BY_HAND:
        assert all(side[f"by hand: {name}"]["questions"] == 25 for side in scores["sides"].values())
    windows = bench.story_windows(speaker_of("smollm2"), W)
    context = model(torch.tensor([windows[0] + windows[1]])).logits[0, W:-1]  # `forward` sleeps at the edge
    wanted = torch.nn.functional.cross_entropy(context, torch.tensor(windows[1][1:])).item()
    assert scores["story"][bench.MEMORY][0] == pytest.approx(wanted, rel=1e-4)
    assert all(len(nats) == len(windows) - 1 for nats in scores["story"].values())
