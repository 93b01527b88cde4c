"""Checking a file of GSM-Infinite problems, ours or the benchmark's, with the solver."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reverie.errors import UserError
from reverie.tasks.gsm_infinite.parser import NotAProblemError, parse
from reverie.tasks.gsm_infinite.solver import UnsolvableError, work_out

_SUFFIXES = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class Check:
    """Result of checking a file; each of `complaints` is a sentence that names a line."""

    path: str
    problems: int
    answers_right: int
    operations_right: int
    complaints: tuple[str, ...]


def check_problems(path: Path) -> Check:
    """Solve every row's `problem` and `question` and compare with its `answer` and `operations` (or `op`).

    Raises:
        UserError: there is no such file, or a row is not a problem.
    """
    rows = answers = operations = 0
    complaints = []
    for line, row in _rows(path):
        rows += 1
        where = f"line {line}"
        try:
            solution = work_out(parse(row["problem"], row["question"]))
        except NotAProblemError as error:
            raise UserError(f"{path}, {where}, is no problem: {error}") from None
        except UnsolvableError as error:
            complaints.append(f"{where} cannot be solved: {error}")
            continue
        answers += solution.answer == row["answer"]
        operations += solution.operations == row["operations"]
        if solution.answer != row["answer"]:
            complaints.append(f"{where} has the answer {row['answer']}, the solver finds {solution.answer}")
        if solution.operations != row["operations"]:
            complaints.append(f"{where} has {row['operations']} operations, the solver counts {solution.operations}")
    if rows == 0:
        raise UserError(f"{path} holds no problem: it is empty")
    return Check(str(path), rows, answers, operations, tuple(complaints))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.name.endswith(_SUFFIXES):
        raise UserError(f"a file of problems must end in {' or '.join(_SUFFIXES)}, got {path}")
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                yield number, _row(line, f"{path}, line {number},")
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, EOFError, zlib.error) as error:  # the last two: a compressed file is cut short or damaged
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8; it must hold one JSON object a line") from None


def _row(line: str, where: str) -> dict[str, Any]:
    """A line as a checked row, with the benchmark's `op` as `operations`."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # the latter: a line is nested too deeply
        raise UserError(f"{where} is not JSON; a file of problems holds one JSON object a line") from None
    if not isinstance(row, dict):
        raise UserError(f"{where} is no JSON object; it must have problem, question, answer and operations")
    row.setdefault("operations", row.get("op"))  # the benchmark's word
    for key, kind in (("problem", str), ("question", str), ("answer", int), ("operations", int)):
        if not isinstance(row.get(key), kind):
            named = "a text" if kind is str else "a whole number"
            raise UserError(f"{where} is no problem: its {key} must be {named}, got {json.dumps(row.get(key))[:60]}")
    return row
