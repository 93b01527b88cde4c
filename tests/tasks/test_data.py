"""Data sets on disk: what rows hold, that a file is whole or absent, and that breaks and workers leave no trace."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reverie.errors import UserError
from reverie.pretrained.smollm2 import load_smollm2
from reverie.recipe import load_recipe
from reverie.tasks import Batch, data
from reverie.tasks.data import UNSCORED, ProblemRows, Rows, TaskRows, write_data
from reverie.tasks.gsm_infinite import ProblemConfig, draw_problem

TINY_DEPO = ["task.max_nodes=6", "task.num_queries=3"]


def problems(unit: str | None = None, split: str = "train", seed: int = 0, **config: Any) -> ProblemRows:
    return ProblemRows.model_validate({"problems": ProblemConfig(**config), "unit": unit, "split": split, "seed": seed})


def examples(name: str = "rule110", split: str = "train", seed: int = 0) -> TaskRows:
    recipe, overrides = {"rule110": ("rule110/nano", []), "depo": ("depo/paper", TINY_DEPO)}[name]
    return TaskRows.model_validate({"task": load_recipe(recipe, overrides).task, "split": split, "seed": seed})


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProblemRows, "chunk", 4)
    monkeypatch.setattr(TaskRows, "chunk", 4)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "rows.jsonl"


def written(rows: Rows, count: int, out: Path, **options: Any) -> bytes:
    write_data(rows, count, out, **options)
    assert files(out.parent) == [out.name]
    return out.read_bytes()


def told(rows: Rows, count: int, out: Path) -> list[int]:
    reported: list[int] = []
    write_data(rows, count, out, report=reported.append)
    return reported


# -- rows


@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_of_problems_are_those_of_the_generator(out: Path, split: str):
    rows = problems(split=split, seed=3, min_operations=2, max_operations=4)
    written(rows, 7, out)
    for index, row in enumerate(read(out)):
        operations = 2 + index % 3
        problem = draw_problem(ProblemConfig(), rows.split, 3, 0, index, operations)
        expected = {"index": index, "split": split, "seed": 3, "operations": operations, "length": len(problem.prompt)}
        for key in ("world", "level", "mode", "problem", "question", "prompt", "solution", "answer"):
            expected[key] = getattr(problem, key)
        assert row == expected


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("unit", [None, "tokens", "characters"])
def test_lengths_are_those_of_the_prompts_and_within_the_wanted_ones(unit: str | None, first: bool):
    measure = len if unit == "characters" else lambda text: len(load_smollm2().encode(text))
    asked: dict[str, Any] = {"length": (1500, 1510), "question_position": "first" if first else "last"}
    lengths = [(row["length"], measure(row["prompt"])) for row in problems(unit, **asked).make(range(12))]
    assert all(stated == true for stated, true in lengths)
    assert all(1500 <= true <= 1510 for _, true in lengths)


def test_only_the_wanted_problems(out: Path):
    written(problems(worlds=("film",), levels=("hard",), modes=("reverse",), min_operations=3), 8, out)
    assert {(row["world"], row["level"], row["mode"]) for row in read(out)} == {("film", "hard", "reverse")}


def test_without_a_length_no_tokenizer_is_needed(out: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(data, "load_smollm2", lambda: pytest.fail("loaded"))
    written(problems(), 2, out)


def test_a_missing_tokenizer_is_told_before_the_first_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def missing() -> None:
        raise UserError("SmolLM2's tokenizer needs the package tokenizers")

    monkeypatch.setattr(data, "load_smollm2", missing)
    with pytest.raises(UserError, match="needs the package tokenizers"):
        write_data(problems(length=(1000, 2000)), 2, tmp_path / "rows.jsonl")
    assert files(tmp_path) == []


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", ["rule110", "depo"])
def test_rows_of_a_task_rebuild_its_batch(out: Path, name: str, split: str):
    rows = examples(name, split, seed=5)
    written(rows, 10, out)
    content = read(out)
    tokens, labels, depth, question = (
        torch.tensor([row[key] for row in content]) for key in ("tokens", "labels", "depth", "question")
    )
    scored = labels != UNSCORED
    rebuilt = Batch(tokens, labels.where(scored, torch.tensor(0)), scored, depth, question)
    for mine, true in zip(rebuilt, rows.task.batch(rows.split, 5, 0, range(10)), strict=True):
        assert torch.equal(mine, true)
    assert [row["index"] for row in content] == list(range(10))
    names = rows.task.token_names()
    assert content[0]["text"].split(" ") == [names[token] for token in content[0]["tokens"]]


# -- the file


def test_parquet_holds_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(data, "_ROW_GROUP", 3)
    for rows in (problems(), examples()):
        write_data(rows, 10, tmp_path / "rows.jsonl")
        write_data(rows, 10, tmp_path / "rows.parquet")
        assert files(tmp_path) == ["rows.jsonl", "rows.parquet"]
        assert parquet.read_table(tmp_path / "rows.parquet").to_pylist() == read(tmp_path / "rows.jsonl")
        for file in tmp_path.iterdir():
            file.unlink()


def test_parquet_without_pyarrow_is_told_before_the_first_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    with pytest.raises(UserError, match=r"pip install 'reverie\[parquet\]'"):
        write_data(examples(), 10, tmp_path / "rows.parquet")
    assert files(tmp_path) == []


def test_what_is_reported_and_summed_up(out: Path):
    told: list[int] = []
    summary = write_data(examples(), 10, out, report=told.append)
    assert told == [0, 4, 8, 10]
    assert (summary.rows, summary.path) == (10, str(out))
    assert summary.rows_per_second == pytest.approx(10 / summary.seconds)


def test_an_existing_file_is_never_overwritten(out: Path):
    out.parent.mkdir()
    out.write_bytes(b"mine")
    with pytest.raises(UserError, match="is there already: delete it, or choose another file"):
        write_data(examples(), 10, out)
    assert (files(out.parent), out.read_bytes()) == ([out.name], b"mine")


def test_a_file_that_comes_meanwhile_is_not_overwritten_and_no_row_is_lost(out: Path):
    def report(rows: int) -> None:
        out.write_bytes(b"mine")

    with pytest.raises(UserError, match="is there already"):
        write_data(examples(), 10, out, report=report)
    assert out.read_bytes() == b"mine"
    out.unlink()
    assert told(examples(), 10, out) == [10]


# -- breaks


def broken_off(rows: Rows, count: int, out: Path, chunks: int) -> Path:
    """The part file of a process that has written some chunks of four rows."""

    def report(done: int) -> None:
        if done == 4 * chunks:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_data(rows, count, out, report=report)
    part = out.with_name(f"{out.name}.part")
    assert files(out.parent) == [part.name, f"{part.name}.json"]
    return part


@pytest.mark.parametrize("cut", [0, 1, 700, 10**9])
@pytest.mark.parametrize("make", [problems, examples])
def test_it_goes_on_after_a_kill_to_the_same_bytes(tmp_path: Path, make: Callable[[], Rows], cut: int):
    whole = written(make(), 11, tmp_path / "whole" / "rows.jsonl")
    out = tmp_path / "broken" / "rows.jsonl"
    part = broken_off(make(), 11, out, chunks=2)
    os.truncate(part, max(part.stat().st_size - cut, 0))
    found = part.read_bytes().count(b"\n")
    assert told(make(), 11, out)[0] == found
    assert files(out.parent) == [out.name]
    assert out.read_bytes() == whole


def test_rows_behind_a_damaged_one_are_made_anew(out: Path):
    whole = written(examples(), 11, out)
    out.unlink()
    part = broken_off(examples(), 11, out, chunks=2)
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join([*lines[:3], b"\0" * len(lines[3]), *lines[4:]]))
    assert told(examples(), 11, out)[0] == 3
    assert out.read_bytes() == whole


def test_parquet_goes_on_too(tmp_path: Path):
    pytest.importorskip("pyarrow")
    whole = written(examples(), 11, tmp_path / "whole" / "rows.parquet")
    out = tmp_path / "broken" / "rows.parquet"
    broken_off(examples(), 11, out, chunks=1)
    assert written(examples(), 11, out) == whole


def test_it_goes_on_where_only_the_last_move_is_missing(out: Path):
    part = broken_off(examples(), 8, out, chunks=2)
    rows = part.read_bytes()
    assert told(examples(), 8, out) == [8]
    assert out.read_bytes() == rows


@pytest.mark.parametrize("changed", ["count", "seed", "split", "task"])
def test_a_part_of_other_settings_is_refused_and_kept(out: Path, changed: str):
    part = broken_off(examples(), 11, out, chunks=1)
    before = part.read_bytes()
    rows = {"seed": examples(seed=1), "split": examples(split="test"), "task": examples("depo")}.get(
        changed, examples()
    )
    with pytest.raises(UserError, match=r"rows\.jsonl\.part was begun with other settings: .* delete it to start"):
        write_data(rows, 12 if changed == "count" else 11, out)
    assert part.read_bytes() == before
    part.unlink()  # as advised
    written(rows, 11, out)


@pytest.mark.parametrize("settings", [None, b"", b"{}", b"\xff"])
def test_a_part_without_its_settings_is_refused(out: Path, settings: bytes | None):
    part = broken_off(examples(), 11, out, chunks=1)
    beside = part.with_name(f"{part.name}.json")
    beside.unlink() if settings is None else beside.write_bytes(settings)
    with pytest.raises(UserError, match="was begun with other settings"):
        write_data(examples(), 11, out)


def test_a_part_of_a_version_that_makes_other_rows_is_refused(out: Path):
    part = broken_off(examples(), 11, out, chunks=1)
    part.write_bytes(part.read_bytes().replace(b'"depth": [0', b'"depth": [1'))
    with pytest.raises(UserError, match="was begun by another version of reverie"):
        write_data(examples(), 11, out)


def test_an_impossible_row_leaves_nothing_behind(out: Path):
    with pytest.raises(UserError, match=r"takes \d+ or more before padding, so length must allow that, got 50-60"):
        write_data(problems("characters", length=(50, 60)), 4, out)
    assert files(out.parent) == []


def test_two_processes_do_not_write_the_same_file(out: Path):
    def report(rows: int) -> None:
        with pytest.raises(UserError, match="another process is writing"):
            write_data(examples(), 5, out)

    written(examples(), 5, out, report=report)


def test_a_full_disk_is_one_sentence_and_its_rows_are_kept(out: Path):
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    whole = written(examples(), 11, out)
    out.unlink()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) * 2 // 3, limits[1]))
    try:
        with pytest.raises(UserError, match=r"^cannot write .*rows\.jsonl: File too large$"):
            write_data(examples(), 11, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert told(examples(), 11, out)[0] >= 4
    assert out.read_bytes() == whole


# -- workers


@pytest.mark.slow
def test_workers_change_nothing(tmp_path: Path):
    alone = written(problems(), 30, tmp_path / "a" / "rows.jsonl")
    assert alone == written(problems(), 30, tmp_path / "b" / "rows.jsonl", workers=2)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_what_is_wrong_in_a_worker_is_one_sentence(out: Path):
    with pytest.raises(UserError, match="more before padding"):
        write_data(problems("characters", length=(50, 60)), 100, out, workers=2)
    assert multiprocessing.active_children() == []
    assert not list(out.parent.iterdir())


@pytest.mark.slow
def test_a_worker_that_died_is_one_sentence(out: Path):
    def kill_one(rows: int) -> None:
        worker = multiprocessing.active_children()[0].pid if rows else None
        if worker is not None:
            os.kill(worker, signal.SIGKILL)

    with pytest.raises(UserError, match="a worker process ended before its rows were made"):
        write_data(problems(), 1000, out, workers=2, report=kill_one)
