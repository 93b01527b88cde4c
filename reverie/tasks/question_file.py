"""Questions about texts of one's own, from a file."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from reverie.errors import UserError, plain
from reverie.files import opened
from reverie.tasks.base import Split
from reverie.tasks.fillers import fill
from reverie.tasks.reading import Form, Page, Question, ReadingTask

_RIGHT = 'a record is like {"text": "Ann bakes.", "question": "What does Ann do?", "answer": "bakes"}'
_ENDS = "\n", ". ", "! ", "? "  # of sentences


class Asked(NamedTuple):
    """A question about a text."""

    question: str
    answer: str
    depth: int | None  # None: windows back


class AskedText(NamedTuple):
    """A text and the questions about it; `where` is its first record, such as "diary.jsonl, line 3"."""

    text: str
    asked: tuple[Asked, ...]
    where: str
    digest: str


class Piece(NamedTuple):
    """A text, or a part of one, as a block of a page."""

    block: str
    of: AskedText
    whole: bool


class QuestionFile(ReadingTask):
    """Task: pages of the texts of a file, and the file's questions about them.

    The file is JSON Lines or Parquet. A record has `text`, `question` and `answer`, and `depth` if results shall be
    told apart by it; without, depth is the number of windows from the answer to the end of the page. Several records
    may share a text. Other columns are not read.

    A page is texts in random order, joined until it is full; of the last, what fits. Texts are asked about if they are
    there as a whole. Once the file has no more texts, sentences about nobody fill the page. A text that is longer than
    a page begins at a random sentence, and is asked what it still answers word for word.

    A text belongs to the tests or to training by its hash, whatever else is in the file.
    """

    depth_name: ClassVar[str] = "windows back"

    name: Literal["qa"] = "qa"
    file: str = Field(min_length=1, description="ends in .jsonl or .parquet")
    held_out: float = Field(default=0.1, ge=0, le=1, description="share of the texts that tests ask about")
    forms: tuple[Literal["qa", "chat"], ...] = Field(default=("qa",), min_length=1, description="forms of questions")

    def page(self, split: Split, rng: np.random.Generator, count: Callable[[str], int], deepest: int | None) -> Page:
        """Texts of this split, with all questions about them of at most `deepest`, where the file says their depth.

        Raises:
            UserError: the file cannot be read, has no text of this split, or a text that cannot be cut.
        """
        pieces, is_cut = self._pieces(split, rng, count)
        blocks = [piece.block for piece in pieces]
        if is_cut:
            text, starts = "\n" + "".join(blocks), list(accumulate(map(len, blocks[:-1]), initial=1))
        else:
            text, starts = fill(blocks, self.text_tokens, count, rng, "the texts")
        questions = [
            question
            for i, (piece, start) in enumerate(zip(pieces, starts, strict=True))
            if piece.whole or i == 0  # a text that follows others is not asked about where it is cut off
            for question in self._questions(piece, start, rng)
            if deepest is None or question.depth is None or question.depth <= deepest
        ]
        shuffled = tuple(questions[i] for i in rng.permutation(len(questions)))
        return Page(text, shuffled, frozenset(question.about for question in shuffled))

    def _pieces(self, split: Split, rng: np.random.Generator, count: Callable[[str], int]) -> tuple[list[Piece], bool]:
        """What a page is made of, and whether its last piece goes beyond the end of the page."""
        texts = _texts(Path(self.file), self.held_out, split)
        pieces: list[Piece] = []
        room = self.text_tokens - 1  # a line break goes first
        for i in rng.permutation(len(texts)):
            piece = Piece(f" {texts[i].text}\n", texts[i], whole=True)
            size = count(_head(piece.block, room, count))
            if size > room and not pieces:
                piece = _from_inside(texts[i], room, count, rng)
                size = count(_head(piece.block, room, count))
            if size > room:
                return [*pieces, Piece(_head(piece.block, room, count), texts[i], whole=False)], True
            pieces.append(piece)
            room -= size
        return pieces, False

    def _questions(self, piece: Piece, start: int, rng: np.random.Generator) -> Iterator[Question]:
        """The questions about a piece that begins at character `start` of the page."""
        for asked in piece.of.asked:
            place = _place(asked.answer, piece.block)
            if place is None and not piece.whole:
                continue
            form: Form = self.forms[rng.integers(len(self.forms))]
            source = None if place is None else (start + place[0], start + place[1])
            about = f"{piece.of.digest[:12]} {asked.question}"
            yield Question(asked.question, asked.answer, form, "qa", about, source, asked.depth)

    def depths(self) -> range:
        """Those of the file, and windows back where a record has none."""
        given = [asked.depth for text in _read(Path(self.file)) for asked in text.asked]
        return range(1, max(self.num_windows if depth is None else depth for depth in given) + 1)


def _head(text: str, length: int, count: Callable[[str], int]) -> str:
    """A beginning of more than `length` tokens, so that no book is counted for a page; all of it if it has no more."""
    characters = 8 * length + 8
    while characters < len(text) and count(text[:characters]) <= length:
        characters *= 2
    return text[:characters]


def _from_inside(text: AskedText, length: int, count: Callable[[str], int], rng: np.random.Generator) -> Piece:
    """A text longer than a page, from a random sentence on that has an answer within `length` tokens after it.

    Raises:
        UserError: no answer stands in it, so that nobody knows which part answers what.
    """
    places = [place for asked in text.asked if (place := _place(asked.answer, text.text)) is not None]
    if not places:
        raise UserError(
            f"{text.where}: the text is longer than a page of {length} tokens, and no answer stands in it word for "
            f"word: raise window_tokens or num_windows, or cut the text"
        )
    first, stop = places[rng.integers(len(places))]
    drawn = int(rng.integers(max(0, first - 4 * length), first + 1))
    while count(f" {text.text[(start := _sentence(text.text, drawn)) : stop]}") > length:
        if drawn == first:  # a long sentence
            start = first
            break
        drawn += (first - drawn + 1) // 2
    return Piece(f" {text.text[start:]}\n", text, whole=False)


def _sentence(text: str, place: int) -> int:
    """Where the sentence or line begins in which a character stands."""
    return max((at + len(end) for end in _ENDS if (at := text.rfind(end, 0, place)) >= 0), default=0)


def _place(answer: str, text: str) -> tuple[int, int] | None:
    """Characters [start, stop) of a text where the answer stands first, not as a part of a longer word."""
    found = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text)
    return found.span() if found else None


@lru_cache(maxsize=16)
def _texts(file: Path, held_out: float, split: Split) -> tuple[AskedText, ...]:
    """The texts of a split. Raises UserError if there are none, or as `_read`."""
    every = _read(file)
    found = tuple(text for text in every if (int(text.digest[:16], 16) < held_out * 2**64) == (split == "test"))
    if not found:
        raise UserError(
            f"none of the {len(every)} texts of {file} is in the {split} split at held_out {held_out}: "
            f"{'raise' if split == 'test' else 'lower'} held_out, or add texts"
        )
    return found


@lru_cache(maxsize=8)
def _read(file: Path) -> tuple[AskedText, ...]:
    """The texts of a file, in the order in which they first occur.

    Raises:
        UserError: the file cannot be read, or a record of it.
    """
    texts: dict[str, dict[str, Asked]] = {}
    first: dict[str, str] = {}
    for where, row in _rows(file):
        text, asked = _record(row, where)
        known = texts.setdefault(text, {})
        first.setdefault(text, where)
        if known.setdefault(asked.question, asked) != asked:
            raise UserError(
                f"{where}: the same question about the same text has another answer or depth above: delete one of them"
            )
    if not texts:
        raise UserError(f"{file} has no record: {_RIGHT}")
    return tuple(
        AskedText(text, tuple(asked.values()), first[text], hashlib.blake2b(text.encode(), digest_size=16).hexdigest())
        for text, asked in texts.items()
    )


def _record(row: Any, where: str) -> tuple[str, Asked]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: it is no object; {_RIGHT}")
    for key in ("text", "question", "answer"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise UserError(f"{where}: {key} must be a string that is not empty; {_RIGHT}")
        if any("\ud800" <= char <= "\udfff" for char in row[key]):
            raise UserError(f"{where}: {key} has half of a character, which no text in UTF-8 has")
    depth = row.get("depth")
    if depth is not None and (type(depth) is not int or depth < 1):
        raise UserError(f"{where}: depth must be a whole number of at least 1, or absent, got {depth!r:.40}")
    text, question, answer = (row[key].strip() for key in ("text", "question", "answer"))
    return text, Asked(question, answer, depth)


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    """Each record with the place where it stands."""
    if file.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"the file of questions must end in .jsonl or .parquet, got {file}")
    try:
        yield from _of_parquet(file) if file.suffix == ".parquet" else _of_jsonl(file)
    except OSError as error:
        raise UserError(f"cannot read {file}: {plain(str(error.strerror or error).strip()):.200}") from error


def _of_jsonl(file: Path) -> Iterator[tuple[str, Any]]:
    with opened(file) as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file}, line {number}"
            try:
                content = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if content.strip():
                    yield where, json.loads(content)
            except UnicodeDecodeError:
                raise UserError(f"{where}: it is not UTF-8: save the file as UTF-8") from None
            except (ValueError, RecursionError) as error:
                fault = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", error)
                raise UserError(f"{where}: it is no JSON ({fault}); {_RIGHT}") from None


def _of_parquet(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(
            "a .parquet file needs the package pyarrow: run pip install 'reverie[parquet]', or give a .jsonl file"
        ) from None
    number = 0
    with opened(file) as content:
        try:
            table = parquet.ParquetFile(content)
            known = [key for key in ("text", "question", "answer", "depth") if key in table.schema_arrow.names]
            for batch in table.iter_batches(columns=known):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}, row {number}", row
        except (ValueError, KeyError, NotImplementedError) as error:  # pyarrow's ArrowInvalid and others of its own
            raise UserError(f"{file} is no Parquet file, or damaged: {plain(str(error)):.200}") from error
