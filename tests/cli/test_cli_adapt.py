"""`reverie adapt`, and what `read`, `ask`, `eval` and `generate` make of its adapter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from command_line import Reverie, assert_one_line, in_empty_folder, the_json
from reading_pages import needs_smollm2
from tiny_adapter import W, tiny_base
from transformers import AutoModelForCausalLM, AutoTokenizer

from reverie.errors import UserError
from reverie.hf.models.smollm2 import load_smollm2_tokenizer
from reverie.recipe import load_recipe
from reverie.results.card import load_card
from reverie.talk.sleeper import load_model

pytestmark = [pytest.mark.hf, needs_smollm2]

SMALL = {
    "task.window_tokens": W,
    "sleep.window_size": W,
    "train.steps": 3,
    "train.batch_size": 2,
    "train.eval_every": 3,
    "train.eval_examples": 2,
    "adapt.pool": 4,
    "adapt.start.pages": 2,
    "adapt.pages": [1, 1],
}
SETTINGS = [f"--set={key}={value}" for key, value in SMALL.items()]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_base(tmp_path_factory.mktemp("base") / "llama")
    load_smollm2_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def reverie(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Reverie:
    monkeypatch.setenv("REVERIE_CACHE", str(tmp_path / "cache"))
    return in_empty_folder(monkeypatch, capsys, tmp_path)


@pytest.mark.slow
def test_an_adapter_from_the_first_page_to_the_last_answer(reverie: Reverie, base: Path) -> None:
    done = reverie("adapt", base, "--data=notes", "--out=run", *SETTINGS, "--json")
    card = the_json(done)
    assert "run/adapter" in done.err
    assert card["recipe"]["model"]["after"] == [0]
    assert card["recipe"]["model"]["lora_blocks"] == [[0, 3]]
    assert {"accuracy_when_empty", "accuracy_later", "plain_text_loss", "by_kind"} <= card["score"].keys()

    Path("notes.txt").write_text("The code of the gate is 4711. Ute Weber works as a baker. " * 3)
    assert reverie("read", "run/adapter", "notes.txt", "--memory=notes.memory").code == 0
    question = "What is the code of the gate?"
    asked = reverie("ask", "run/adapter", question, "--memory=notes.memory", "--against-empty", "--json", "--tokens=4")
    answers = the_json(asked)
    assert answers["remembers"]
    assert answers["answers"][0]["question"] == question
    assert load_model("run/adapter")

    found = the_json(reverie("eval", "run", "--json"))
    for key in ("question_accuracy", "loss", "accuracy_later", "accuracy_when_empty", "by_kind"):
        assert found["score"][key] == card["score"][key], key

    model: Any = AutoModelForCausalLM.from_pretrained("run/adapter")
    tokens = AutoTokenizer.from_pretrained("run/adapter")("The code of the gate is", return_tensors="pt")
    assert model.generate(**tokens, max_new_tokens=3, do_sample=False).shape[1] == tokens["input_ids"].shape[1] + 3

    assert_one_line(reverie("adapt", base, "--data=notes", "--out=run", *SETTINGS), "already holds a run", "--resume")
    again = the_json(reverie("adapt", base, "--data=notes", "--out=run", *SETTINGS, "--resume", "--json"))
    assert again["score"] == card["score"]
    assert load_card(Path("run/card.json"))


@pytest.mark.slow
def test_a_mixture_of_ones_own(reverie: Reverie, base: Path) -> None:
    lines = [
        f"""{{"text": "Item {i} costs {i} crowns. ", "question": "What costs {i}?", "answer": "item {i}"}}"""
        for i in range(40)
    ]
    Path("own.jsonl").write_text("\n".join(lines))
    Path("prose").mkdir()
    Path("prose/a.txt").write_text("It was a dark and stormy night, and rain fell in torrents on the town. " * 200)
    data = ["--data=notes=2", "--data=qa:own.jsonl", "--data=text:prose=0.5"]
    done = reverie("adapt", base, *data, "--out=run", *SETTINGS, "--json")
    assert done.code == 0, done.err
    parts = the_json(done)["recipe"]["task"]["parts"]
    assert [(part["weight"], part["task"]["name"]) for part in parts] == [(2.0, "notes"), (1.0, "qa"), (0.5, "text")]


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ("nots", "--data must be notes, hops, gsm_pages, qa:FILE or text:DIR"),
        ("qa", "--data must be"),
        ("notes=", "--data must be"),
        ("notes=x", "--data must be"),
        ("notes=0", "weight"),
        ("qa:none.jsonl", "none.jsonl"),
        ("text:none", "none"),
        ("text:of/📚", "of/📚"),
        ("no_such:Pages=2", "task.name is no_such:Pages, but there is no module no_such"),
    ],
)
def test_a_mistake_in_data_is_one_sentence(reverie: Reverie, data: str, part: str) -> None:
    more = ["--data=hops"] if data == "notes=0" else []
    assert_one_line(reverie("adapt", "smollm2", f"--data={data}", *more, "--out=run"), part)
    assert not Path("run").exists() or not any(Path("run").iterdir())


def test_a_mistake_in_the_model_is_one_sentence(reverie: Reverie) -> None:
    Path("empty").mkdir()
    for model in ("nowhere", "empty"):
        assert_one_line(reverie("adapt", model, "--data=notes", "--out=run"), model)
    assert_one_line(reverie("adapt", "smollm2", "--data=notes", "--out=run", "--set=adapt.pol=3"), "adapt.pool")
    assert_one_line(reverie("adapt", "smollm2", "--data=notes", "--out=run", "--resume"), "no run to go on with")


def test_the_recipes_it_builds_on() -> None:
    for name in ("notes/smollm2", "notes/smollm2-longer", "hops/smollm2", "hops/smollm2-road", "gsm_pages/smollm2"):
        assert load_recipe(name).adapt is not None
    with pytest.raises(UserError, match="trained_blocks"):
        load_recipe("notes/smollm2", ["adapt.trained_blocks=[[2, 2]]"])


@pytest.mark.slow
def test_a_time_decides_how_many_steps(reverie: Reverie, base: Path) -> None:
    settings = [one for one in SETTINGS if not any(key in one for key in ("train.steps", "eval_every", "adapt.pool"))]
    command = ["adapt", base, "--data=notes", "--out=run", *settings]
    done = reverie(*command, "--max-seconds=20")  # it may be too slow all the same, where others compute too
    told = re.search(r"(\d+) of (\d+) steps over (\d+) pages fit", done.err)
    assert told
    assert 3 <= int(told[1]) < int(told[2])
    card = the_json(reverie(*command, "--resume", "--json"))
    assert card["recipe"]["train"]["steps"] == card["steps"] == int(told[1])
    assert card["recipe"]["adapt"]["pool"] == int(told[3])
    assert_one_line(reverie(*command, "--max-seconds=30"), "already holds a run")


@pytest.mark.slow
def test_smollm2_remembers_after_a_few_minutes(reverie: Reverie) -> None:
    """Of names, values, wordings and kinds that no training has seen a tenth (a fifth where this was measured), and
    nothing of it without a memory."""
    few = {"train.steps": 140, "train.eval_every": 140, "train.eval_examples": 6, "adapt.pool": 96}
    few |= {"adapt.pages": [1, 1], "adapt.plain_windows": 1, "adapt.loss.address_alone": 0.35}
    few |= {"task.cloze": 1, "task.chat": 0}
    card = the_json(
        reverie("adapt", "smollm2", "--data=notes", "--out=run", "--json", *(f"--set={k}={v}" for k, v in few.items()))
    )
    kinds = [kind for name, kind in card["score"]["by_kind"].items() if not name.startswith("unknown")]
    right, empty = (
        sum(kind[share] * kind["questions"] for kind in kinds) / sum(kind["questions"] for kind in kinds)
        for share in ("right", "right_when_empty")
    )
    assert right > 0.1
    assert empty <= 0.02
    assert card["score"]["plain_text_loss"]["adapted"] < 1.03 * card["score"]["plain_text_loss"]["untouched"]
