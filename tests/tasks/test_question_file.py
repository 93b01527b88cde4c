"""The task qa against the records that its file was written from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from reading_pages import asked, decode, letters, needs_smollm2  # noqa: F401

from reverie.errors import UserError
from reverie.tasks.fillers import FILLERS
from reverie.tasks.question_file import QuestionFile

pytestmark = needs_smollm2

NAMES = ("Ann", "Tom", "Ben", "Sam", "Max", "Kim", "Joe", "Eve", "Dan", "Lee", "Sue", "Bob", "Ray", "Amy", "Meg", "Ted")


def record(text: str, question: str, answer: str, **others: Any) -> dict[str, Any]:
    return {"text": text, "question": question, "answer": answer, **others}


def about(name: str, cats: int, **others: Any) -> list[dict[str, Any]]:
    text = f"{name} lives by the river, as everybody knows.\nThere are {cats} cats in that house."
    cats_of = record(text, f"How many cats has {name}?", str(cats), **others)
    return [cats_of, record(text, f"Where does {name} live?", "by the river", **others)]


TOWN = [row for i, name in enumerate(NAMES) for row in about(name, 11 + i)]
CODES = [(day, 1000 + 7 * day) for day in range(100)]
DIARY = " ".join(f"On day {day} the code was {code}." for day, code in CODES)
LONG = [record(DIARY, f"What was the code on day {day}?", str(code)) for day, code in CODES]


def written(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def test_questions_are_those_of_the_texts_on_the_page(tmp_path: Path) -> None:
    task = QuestionFile(file=written(tmp_path / "town.jsonl", TOWN), window_tokens=40, num_windows=2, held_out=0)
    for page in task.pages("train", 0, 0, range(20)):
        text = decode(page.tokens)
        assert len(page.tokens) == 80
        assert text.startswith("\n ")
        whole = {row["text"] for row in TOWN if row["text"] in text}
        wanted = {(f"\nQ: {row['question']} A:", f" {row['answer']}<|im_end|>") for row in TOWN if row["text"] in whole}
        assert {(decode(q.prompt), decode(q.answer)) for q in page.questions} == wanted
        assert len(whole) >= 2  # short texts are joined
        assert len({q.about for q in page.questions}) == len(page.questions)
        assert page.facts == {q.about for q in page.questions}
        for q in page.questions:
            assert q.source is not None
            assert decode(page.tokens[slice(*q.source)]) == decode(q.answer[:-1])
            assert task.depth_of(q) == (2 if q.source[1] <= 40 else 1)


def test_pages_are_filled_up_when_the_file_has_no_more_texts(tmp_path: Path) -> None:
    task = QuestionFile(file=written(tmp_path / "one.jsonl", TOWN[:2]), window_tokens=128, held_out=0)
    places = set()
    for page in task.pages("train", 0, 0, range(10)):
        text = decode(page.tokens)
        assert text.count(TOWN[0]["text"]) == 1
        rest = text.replace(f" {TOWN[0]['text']}\n", "").removeprefix("\n")
        *whole, last = re.findall(r" [^.]*(?:\.|$)", rest)
        assert set(whole) <= set(FILLERS)
        assert any(filler.startswith(last) for filler in FILLERS)
        places.add(text.index(TOWN[0]["text"]))
    assert len(places) > 3


def test_long_text_is_cut_and_asked_what_stands_on_the_page(tmp_path: Path) -> None:
    task = QuestionFile(file=written(tmp_path / "diary.jsonl", LONG), window_tokens=64, held_out=0)
    days = set()
    for page in task.pages("train", 0, 0, range(60)):
        text = decode(page.tokens)
        on_page = {day for day, code in CODES if f"On day {day} the code was {code}" in text}
        found = {int(re.findall(r"\d+", decode(q.prompt))[0]) for q in page.questions}
        assert found == on_page != set()
        days |= found
    assert len(days) > 70


def test_a_text_too_long_without_literal_answers_is_refused(tmp_path: Path) -> None:
    task = QuestionFile(
        file=written(tmp_path / "x.jsonl", [record(DIARY, "Is it so?", "yes")]), window_tokens=64, held_out=0
    )
    with pytest.raises(UserError, match=r"x\.jsonl, line 1: the text is longer than a page of \d+ tokens"):
        task.pages("train", 0, 0, range(1))


def test_answers_that_stand_nowhere_are_asked_of_whole_texts(tmp_path: Path) -> None:
    rows = [record(f"{name} is here.", f"Is {name} here?", "yes") for name in NAMES]
    task = QuestionFile(file=written(tmp_path / "x.jsonl", rows), window_tokens=32, held_out=0)
    for page in task.pages("train", 0, 0, range(5)):
        whole = {name for name in NAMES if f"{name} is here.\n" in decode(page.tokens)}
        assert {decode(q.prompt) for q in page.questions} >= {f"\nQ: Is {name} here? A:" for name in whole}
        assert all(q.source is None for q in page.questions)


def test_splits_are_disjoint_and_depend_on_a_text_alone(tmp_path: Path) -> None:
    def texts(rows: list[Any], split: Any) -> set[str]:
        file = written(tmp_path / f"{len(rows)}.jsonl", rows)
        task = QuestionFile(file=file, window_tokens=32, held_out=0.4)
        pages = task.pages(split, 0, 0, range(80))
        return {name for page in pages for name in NAMES for q in page.questions if name in decode(q.prompt)}

    train, test = texts(TOWN, "train"), texts(TOWN, "test")
    assert train | test == set(NAMES)
    assert train & test == set()
    assert 2 <= len(test) <= 12
    half = set(NAMES[:8])
    assert texts(TOWN[:16], "test") == test & half


def test_empty_split_gets_a_sentence(tmp_path: Path) -> None:
    file = written(tmp_path / "x.jsonl", TOWN[:2])
    with pytest.raises(UserError, match=r"none of the 1 texts of .* is in the test split at held_out 0.0: raise"):
        QuestionFile(file=file, held_out=0).batch("test", 0, 0, range(1))
    with pytest.raises(UserError, match=r"is in the train split at held_out 1.0: lower"):
        QuestionFile(file=file, held_out=1).batch("train", 0, 0, range(1))


def test_depths_of_the_file(tmp_path: Path) -> None:
    rows = [row for i, name in enumerate(NAMES) for row in about(name, 11 + i, depth=1 + i % 3)]
    task = QuestionFile(file=written(tmp_path / "x.jsonl", rows), window_tokens=80, held_out=0)
    assert task.depths() == range(1, 4)
    pages = task.pages("train", 0, 0, range(10), max_depth=2)
    assert {task.depth_of(q) for page in pages for q in page.questions} == {1, 2}
    for page in task.pages("train", 0, 0, range(5)):
        for q in page.questions:
            name = next(name for name in NAMES if name in decode(q.prompt))
            assert q.depth == 1 + NAMES.index(name) % 3


def test_examples_do_not_depend_on_order_or_division(tmp_path: Path) -> None:
    task = QuestionFile(file=written(tmp_path / "x.jsonl", TOWN), window_tokens=64, held_out=0)
    whole = task.pages("train", 1, 2, range(6))
    assert task.pages("train", 1, 2, range(5, -1, -1)) == whole[::-1]
    assert task.pages("train", 1, 2, range(3, 5)) == whole[3:5]
    assert task.pages("train", 2, 2, range(6)) != whole


def test_forms_and_labels(tmp_path: Path) -> None:
    file = written(tmp_path / "x.jsonl", TOWN)
    task = QuestionFile(file=file, window_tokens=80, held_out=0, forms=("qa", "chat"))
    answers = {row["question"]: row["answer"] for row in TOWN}
    seen = set()
    for row in range(8):
        for shown, predicted, _ in asked(task, task.batch("train", 0, 0, range(8)), row):
            form = re.fullmatch(r"\nQ: (.*) A:|<\|im_start\|>.*user\n(.*)<\|im_end\|>\n.*assistant\n", shown, re.DOTALL)
            assert form
            assert predicted == f" {answers[form[1] or form[2]]}<|im_end|>"
            seen.add(form[1] is None)
    assert seen == {True, False}


def test_parquet_holds_the_same(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([{"id": 1, **row} for row in TOWN]), tmp_path / "x.parquet")
    tasks = [QuestionFile(file=file, window_tokens=64, held_out=0) for file in (str(tmp_path / "x.parquet"),)]
    tasks.append(QuestionFile(file=written(tmp_path / "x.jsonl", TOWN), window_tokens=64, held_out=0))
    assert tasks[0].pages("train", 0, 0, range(4)) == tasks[1].pages("train", 0, 0, range(4))
    parquet.write_table(pyarrow.Table.from_pylist([TOWN[0], {**TOWN[1], "answer": None}]), tmp_path / "bad.parquet")
    with pytest.raises(UserError, match=r"bad\.parquet, row 2: answer must be a string"):
        QuestionFile(file=str(tmp_path / "bad.parquet")).depths()
    (tmp_path / "none.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"none\.parquet is no Parquet file"):
        QuestionFile(file=str(tmp_path / "none.parquet")).depths()


GOOD = json.dumps(TOWN[0]).encode()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GOOD, b"{"], r"bad\.jsonl, line 2: it is no JSON \(.*\); a record is like"),
        ([GOOD, b"", b"[1]"], r"bad\.jsonl, line 3: it is no object; a record is like"),
        ([b'{"text": "a", "question": "b"}'], r"bad\.jsonl, line 1: answer must be a string that is not empty"),
        ([b'{"text": " ", "question": "b", "answer": "c"}'], r"line 1: text must be a string"),
        ([b'{"text": "a", "question": 3, "answer": "c"}'], r"line 1: question must be a string"),
        ([GOOD, b"\xff\xfe"], r"bad\.jsonl, line 2: it is not UTF-8"),
        ([b'{"text": "a", "question": "b", "answer": "c", "depth": 0}'], r"line 1: depth must be a whole number"),
        ([GOOD, GOOD.replace(b'"11"', b'"12"')], r"line 2: the same question about the same text has another answer"),
        ([b""], r"bad\.jsonl has no record"),
    ],
)
def test_bad_lines_get_a_sentence(tmp_path: Path, lines: list[bytes], message: str) -> None:
    (tmp_path / "bad.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match=message) as error:
        QuestionFile(file=str(tmp_path / "bad.jsonl")).batch("train", 0, 0, range(1))
    assert "\n" not in str(error.value)


def test_missing_or_other_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*: No such file"):
        QuestionFile(file=str(tmp_path / "x.jsonl")).depths()
    with pytest.raises(UserError, match=r"must end in \.jsonl or \.parquet"):
        QuestionFile(file=str(tmp_path / "x.csv")).depths()


def test_tokens_of_letters(tmp_path: Path, letters: str) -> None:  # noqa: F811
    file = written(tmp_path / "x.jsonl", TOWN)
    task = QuestionFile(file=file, tokenizer=letters, window_tokens=200, held_out=0, forms=("chat",))
    for page in task.pages("train", 0, 0, range(5)):
        text = "".join(map(chr, page.tokens))
        assert page.questions
        for q in page.questions:
            assert q.source is not None
            assert text[slice(*q.source)] == "".join(map(chr, q.answer[:-1]))
            assert "".join(map(chr, q.prompt)).startswith("[")
