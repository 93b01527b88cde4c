"""Files of problems against the solver: what is right, what differs, and what is no problem at all."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reverie.cli.app import app
from reverie.errors import UserError
from reverie.tasks.data import ProblemRows, write_data
from reverie.tasks.gsm_infinite.check import check_problems
from reverie.tasks.gsm_infinite.generator import ProblemConfig

GOOD: dict[str, Any] = {
    "problem": "The number of tin owl in Fen Hollow equals 3. "
    "The number of tin owl in Rye equals 2 times the number of tin owl in Fen Hollow. ",
    "question": "How many tin owl does Rye have?",
    "answer": 6,
    "operations": 3,
}


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_what_we_write_is_right(tmp_path: Path) -> None:
    out = tmp_path / "problems.jsonl"
    write_data(ProblemRows(problems=ProblemConfig(), split="test", seed=3), 24, out)
    check = check_problems(out)
    assert (check.problems, check.answers_right, check.operations_right, check.complaints) == (24, 24, 24, ())


def test_the_benchmark_s_word_and_compressed_files(tmp_path: Path) -> None:
    row = {"op" if key == "operations" else key: value for key, value in GOOD.items()}
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    assert check_problems(path).operations_right == 1
    whole = path.read_bytes()
    for damaged in (whole[:-9], whole[:40] + bytes(20) + whole[60:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"^cannot read .*x\.jsonl\.gz"):
            check_problems(path)


def test_what_differs_is_named_by_line(tmp_path: Path) -> None:
    unsolvable = {**GOOD, "problem": "The number of tin owl in Rye equals the number of tin owl in Fen Hollow."}
    rows = [GOOD, {**GOOD, "answer": 7}, {**GOOD, "operations": 2}, unsolvable]
    path = written(tmp_path / "x.jsonl", *rows)
    check = check_problems(path)
    assert (check.problems, check.answers_right, check.operations_right) == (4, 2, 2)
    wrong, miscounted, undefined = check.complaints
    assert wrong == "line 2 has the answer 7, the solver finds 6"
    assert miscounted == "line 3 has 2 operations, the solver counts 3"
    assert undefined.startswith("line 4 cannot be solved: ")
    result = CliRunner().invoke(app, ["data", "check", str(path)])
    assert result.exit_code == 1
    assert result.output.startswith("4 problems: 2 answers and 2 operation counts right\n")
    result = CliRunner().invoke(app, ["data", "check", str(path), "--json"])
    assert json.loads(result.output)["complaints"] == list(check.complaints)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "holds no problem: it is empty"),
        (b"hello\n", "line 1, is not JSON"),
        (b"[" * 100_000, "line 1, is not JSON"),
        (b"[1]\n", "line 1, is no JSON object"),
        (b"\xff\xfe", "is no text in UTF-8"),
        (json.dumps({**GOOD, "answer": "6"}).encode(), 'its answer must be a whole number, got "6"'),
        (json.dumps({**GOOD, "question": None}).encode(), "its question must be a text, got null"),
        (json.dumps({**GOOD, "problem": "Once upon a time."}).encode(), "line 1, is no problem: "),
    ],
)
def test_no_problems(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        check_problems(path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        check_problems(tmp_path / "x.jsonl")
    with pytest.raises(UserError, match=r"must end in \.jsonl or \.jsonl\.gz"):
        check_problems(tmp_path / "x.csv")
