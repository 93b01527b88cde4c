"""Data sets on disk: rows of a task in a JSON Lines or Parquet file that is there when it is complete, not before.

Row i depends on the settings and on i alone. So several processes may make rows, and a file that was broken off goes on
from the last whole row to the same bytes: until it is complete, rows lie in FILE.part and settings in FILE.part.json.
"""

import contextlib
import importlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from reverie.errors import UserError
from reverie.files import locked, move_into_place, write_atomic, writing
from reverie.pretrained.smollm2 import load_smollm2
from reverie.tasks import AnyTask, Split
from reverie.tasks.gsm_infinite import ProblemConfig, draw_problem
from reverie.tasks.gsm_infinite.task import token_counter
from reverie.workers import made_ahead

UNSCORED = -100  # the label that PyTorch's cross entropy ignores

SUFFIXES = (".jsonl", ".parquet")
_PROBLEM_FIELDS = ("world", "level", "mode", "operations", "problem", "question", "prompt", "solution", "answer")
_ROW_GROUP = 1024  # rows of a Parquet file that are converted at a time


class Rows(BaseModel):
    """Rows without end, each one a JSON object fixed by these settings and its index."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chunk: ClassVar[int]  # rows that a process makes at a time: about half a second's work

    split: Split
    seed: int = Field(ge=0, lt=2**32)

    def prepare(self) -> None:
        """Raises UserError if something is missing that rows need."""

    def make(self, indices: range) -> list[dict[str, Any]]:
        raise NotImplementedError


class ProblemRows(Rows):
    """Problems of GSM-Infinite in words; their numbers of operations take turns."""

    chunk: ClassVar[int] = 32

    problems: ProblemConfig
    unit: Literal["tokens", "characters"] = Field(
        default="",
        validate_default=True,
        description="of lengths; if absent SmolLM2's tokens where problems have a length, else characters",
    )

    @field_validator("unit", mode="before")
    @classmethod
    def _unit_of_lengths(cls, unit: str | None, info: ValidationInfo) -> str:
        return unit or ("tokens" if info.data["problems"].length else "characters")

    def prepare(self) -> None:
        if self.unit == "tokens":
            load_smollm2()

    def make(self, indices: range) -> list[dict[str, Any]]:
        operations = range(self.problems.min_operations, self.problems.max_operations + 1)
        return [self._row(i, operations[i % len(operations)]) for i in indices]

    def _row(self, index: int, operations: int) -> dict[str, Any]:
        # A prompt does without the space before its first piece. That is a character less, but no token.
        measure, reserved = (token_counter(load_smollm2()), 0) if self.unit == "tokens" else (len, -1)
        try:
            problem = draw_problem(
                self.problems, self.split, self.seed, 0, index, operations, measure=measure, reserved=reserved
            )
        except UserError as error:
            raise UserError(f"{error} (lengths in {self.unit})") from None
        return {
            "index": index,
            "split": self.split,
            "seed": self.seed,
            **{name: getattr(problem, name) for name in _PROBLEM_FIELDS},
            "length": reserved + sum(map(measure, (*problem.context, *problem.cue))),
        }


class TaskRows(Rows):
    """Examples of a task in token ids, those of training step 0."""

    chunk: ClassVar[int] = 1024

    task: AnyTask

    def make(self, indices: range) -> list[dict[str, Any]]:
        batch, names = self.task.batch(self.split, self.seed, 0, indices), self.task.token_names()
        labels = batch.targets.where(batch.loss_mask, torch.tensor(UNSCORED))
        columns = (x.tolist() for x in (batch.tokens, labels, batch.depth, batch.question))
        return [
            {
                "index": index,
                "tokens": tokens,
                "labels": labels,
                "depth": depth,
                "question": question,
                "text": " ".join(names[token] for token in tokens),
            }
            for index, tokens, labels, depth, question in zip(indices, *columns, strict=True)
        ]


@dataclass(frozen=True)
class Summary:
    """Counts of a written file; seconds and speed are those of this call, which may have gone on with earlier rows."""

    rows: int
    path: str
    seconds: float
    rows_per_second: float


def write_data(
    rows: Rows, count: int, out: Path, *, workers: int = 1, report: Callable[[int], None] = lambda rows: None
) -> Summary:
    """The first `count` rows as a file, whose bytes do not depend on `workers`; `report` is told how many there are.

    Called again after a break, it goes on where it stopped.

    Raises:
        UserError: the file is there already or cannot be written, `out` ends in neither .jsonl nor .parquet, a package
            is missing, or there is no row of these settings.
    """
    started = time.perf_counter()
    _check(count, out, workers)
    rows.prepare()
    part, settings = Path(f"{out}.part"), Path(f"{out}.part.json")
    with writing(out), _part_file(out, part, settings) as file:
        done = begun = _resume(file, rows, count, part, settings)
        report(done)
        with _chunks(rows, range(begun, count), workers) as chunks:
            for lines in chunks:
                file.write(lines)
                file.flush()
                done = min(done + rows.chunk, count)
                report(done)
        _check_absent(out)  # it may have come meanwhile
        if out.suffix == ".parquet":
            write_atomic(out, lambda temporary: _to_parquet(part, temporary))
            part.unlink()
        else:
            move_into_place(part, out)
        settings.unlink(missing_ok=True)
    seconds = time.perf_counter() - started
    return Summary(count, str(out), seconds, (done - begun) / seconds)


def _check(count: int, out: Path, workers: int) -> None:
    """Raise UserError for all that can be wrong before the first row."""
    for what, value in (("rows", count), ("processes that make them", workers)):
        if value < 1:
            raise UserError(f"the number of {what} must be at least 1, got {value}")
    if out.suffix not in SUFFIXES:
        raise UserError(f"the file must end in {' or '.join(SUFFIXES)}, got {out}")
    _check_absent(out)
    if out.suffix == ".parquet":
        try:
            importlib.import_module("pyarrow.parquet")
        except ImportError:
            raise UserError(
                "a .parquet file needs the package pyarrow: run pip install 'reverie[parquet]', or write a .jsonl file"
            ) from None


def _check_absent(out: Path) -> None:
    if os.path.lexists(out):
        raise UserError(f"{out} is there already: delete it, or choose another file")


# The part file.


@contextlib.contextmanager
def _part_file(out: Path, part: Path, settings: Path) -> Iterator[BinaryIO]:
    """The part file, open at its end for this process alone; if it stays empty it goes away again."""
    taken = f"another process is writing {part}: wait for it, or choose another file"
    with locked(Path(f"{out}.lock"), taken), part.open("a+b") as file:
        try:
            _check_absent(out)  # another process may have finished it just now
            yield file
        finally:
            if os.fstat(file.fileno()).st_size == 0:
                part.unlink(missing_ok=True)
                settings.unlink(missing_ok=True)


def _resume(file: BinaryIO, rows: Rows, count: int, part: Path, settings: Path) -> int:
    """The number of rows that are there already; what a break left of another one is cut off.

    Raises:
        UserError: these are not the first of the rows now asked for.
    """
    wanted = {"count": count, **rows.model_dump(mode="json")}
    if file.seek(0, os.SEEK_END) == 0:
        write_atomic(settings, json.dumps(wanted).encode())
        return 0
    way_out = "delete it to start afresh, or choose another file"
    try:
        begun = json.loads(settings.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        begun = None
    if begun != wanted:
        raise UserError(f"{part} was begun with other settings: give those to go on with it, {way_out}")
    done, end, last = _whole_lines(file)
    if done and last != _lines(rows, range(done - 1, done)):
        raise UserError(f"{part} was begun by another version of reverie, which makes other rows: {way_out}")
    file.truncate(end)
    file.seek(end)
    return done


def _whole_lines(file: BinaryIO) -> tuple[int, int, bytes]:
    """Number of whole rows in order, where they end, and the last of them."""
    number, end, last = 0, 0, b""
    file.seek(0)
    for line in file:
        # Zeros or gaps can be left by a power cut, for rows are not forced to the disk one by one.
        if not (line.startswith(b'{"index": %d,' % number) and line.endswith(b"}\n")):
            break
        number, end, last = number + 1, end + len(line), line
    return number, end, last


def _to_parquet(part: Path, path: Path) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    with part.open("rb") as lines:
        groups = iter(lambda: [json.loads(line) for line in islice(lines, _ROW_GROUP)], [])
        first = pyarrow.Table.from_pylist(next(groups))
        with ParquetWriter(path, first.schema, compression="zstd") as writer:
            writer.write_table(first)
            for group in groups:
                writer.write_table(pyarrow.Table.from_pylist(group, schema=first.schema))


# The making of rows, here or in other processes.


def _lines(rows: Rows, indices: range) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows.make(indices))


def _chunks(rows: Rows, indices: range, workers: int) -> contextlib.AbstractContextManager[Iterator[bytes]]:
    """The lines of `rows.chunk` rows at a time."""
    pieces = [indices[start : start + rows.chunk] for start in range(0, len(indices), rows.chunk)]
    make, workers = partial(_lines, rows), min(workers, len(pieces))
    lost = (
        "a worker process ended before its rows were made, for want of memory perhaps: written again, the file goes on "
        "where it stopped, and needs less memory with fewer processes"
    )
    if workers < 2:
        return contextlib.nullcontext(map(make, pieces))
    return made_ahead(make, pieces, workers, if_killed=lost)
