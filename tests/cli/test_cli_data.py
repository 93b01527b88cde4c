"""`reverie data`: what it writes, and that every mistake is one line on stderr and makes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Reverie, assert_one_line, assert_usage, in_empty_folder, the_json

from reverie.recipe import load_recipe


@pytest.fixture
def reverie(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Reverie:
    return in_empty_folder(monkeypatch, capsys, tmp_path)


@pytest.mark.parametrize("command", ["", "gsm-infinite", "rule110", "depo", "check"])
def test_help(reverie: Reverie, command: str):
    done = reverie("data", *command.split(), "--help")
    assert done.code == 0
    assert done.out.startswith("Usage: ")
    assert done.err == ""
    assert ("--json" in done.out) == bool(command)


def test_data_writes_problems(reverie: Reverie):
    done = reverie(
        "data", "gsm-infinite", "--ops", "2-3", "--world", "film,wildlife", "--world", "education", "--mode", "forward",
        "--length", "900-990", "--unit", "characters", "--no-instruction", "--count", "4", "--out", "new/rows.jsonl",
        "--json",
    )  # fmt: skip
    summary = the_json(done)
    assert (summary["rows"], summary["path"]) == (4, "new/rows.jsonl")
    assert set(summary) == {"rows", "path", "seconds", "rows_per_second"}
    assert done.err.startswith("rows.jsonl  row 4/4  ")
    rows = [json.loads(line) for line in Path("new/rows.jsonl").read_text().splitlines()]
    assert [row["operations"] for row in rows] == [2, 3, 2, 3]
    assert {row["mode"] for row in rows} == {"forward"}
    assert all(900 <= len(row["prompt"]) <= 990 for row in rows)
    assert all(row["prompt"].startswith("Question: ") for row in rows)


@pytest.mark.parametrize("task", ["depo", "rule110"])
def test_data_writes_examples_of_a_task(reverie: Reverie, task: str):
    default = reverie("data", task, "--count", "2", "--out", "paper.jsonl")
    assert (default.code, default.out) == (0, "2 rows in paper.jsonl\n")
    override = {"depo": "task.num_queries=2", "rule110": "task.num_states=1"}[task]
    done = reverie(
        "data", task, "--recipe", f"{task}/nano", "--set", override, "--count", "2", "--out", "nano.jsonl", "--json"
    )
    assert the_json(done)["rows"] == 2
    recipe = load_recipe(f"{task}/nano", [override])
    row = json.loads(Path("nano.jsonl").read_text().splitlines()[1])
    assert row["tokens"] == recipe.task.batch("train", 0, 0, range(1, 2)).tokens[0].tolist()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("gsm-infinite --count 0 --out a.jsonl", "the number of rows must be at least 1, got 0"),
        ("gsm-infinite --count 1 --out a.json", "the file must end in .jsonl or .parquet, got a.json"),
        ("gsm-infinite --count 1 --out .", "the file must end in .jsonl or .parquet, got ."),
        (
            "gsm-infinite --count 1 --out a.jsonl --workers 0",
            "the number of processes that make them must be at least 1, got 0",
        ),
        ("gsm-infinite --count 1 --out a.jsonl --ops 0", "--ops must be at least 1, got 0"),
        ("gsm-infinite --count 1 --out a.jsonl --ops 31", "--ops must be at most 30, got 31"),
        ("gsm-infinite --count 1 --out a.jsonl --ops 8-1", "--ops must be a range such as 4-8, smaller number"),
        ("gsm-infinite --count 1 --out a.jsonl --ops x", "--ops must be a range such as 4-8, "),
        ("gsm-infinite --count 1 --out a.jsonl --length 0-9", "length [0, 9] must be [shortest, longest] with"),
        ("gsm-infinite --count 1 --out a.jsonl --length 50-60", "takes 1"),
        ("gsm-infinite --count 1 --out a.jsonl --world film,mars", 'must be "wildlife", "education" or "film", got'),
        ("gsm-infinite --count 1 --out a.jsonl --world film,film", "--world names film twice"),
        ("gsm-infinite --count 1 --out a.jsonl --level easy", '--level must be "medium" or "hard", got "easy"'),
        ("gsm-infinite --count 1 --out a.jsonl --mode up", '--mode must be "forward" or "reverse", got "up"'),
        ("gsm-infinite --count 1 --out a.jsonl --unit words", '--unit must be "tokens" or "characters", got'),
        ("gsm-infinite --count 1 --out a.jsonl --question mid", '--question must be "first" or "last", got "mid"'),
        ("gsm-infinite --count 1 --out a.jsonl --split val", '--split must be "train" or "test", got "val"'),
        ("gsm-infinite --count 1 --out a.jsonl --seed -1", "--seed must be at least 0, got -1"),
        ("depo --count 1 --out a.jsonl --recipe rule110/nano", "rule110/nano is of task rule110; --recipe must"),
        ("depo --count 1 --out a.jsonl --set task.max_nodes=1", "task.max_nodes must be at least 2, got 1"),
        ("rule110 --count 1 --out a.jsonl --split val", '--split must be "train" or "test", got "val"'),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_makes_nothing(
    reverie: Reverie, tmp_path: Path, arguments: str, sentence: str
):
    assert_one_line(reverie("data", *arguments.split(" ")), sentence)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [("gsm-infinite --out a.jsonl", "Missing option '--count'"), ("depo --count 1", "Missing option '--out'")],
)
def test_a_missing_option_shows_the_usage(reverie: Reverie, tmp_path: Path, arguments: str, sentence: str):
    assert_usage(reverie("data", *arguments.split()), sentence)
    assert list(tmp_path.iterdir()) == []


def test_control_c_while_data_is_written(reverie: Reverie, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("reverie.tasks.data.write_data", interrupted)
    done = reverie("data", "depo", "--count", "3", "--out", "rows.jsonl")
    assert done == (130, "", "interrupted; the same command goes on where it stopped\n")
