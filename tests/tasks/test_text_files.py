"""The task text against the files that it reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reading_pages import asked, decode, needs_smollm2

from reverie.errors import UserError
from reverie.pretrained.smollm2 import VOCAB_SIZE, load_smollm2
from reverie.tasks.reading import TokenPage
from reverie.tasks.text_files import TextFiles, _tokens

pytestmark = needs_smollm2


def prose(name: str, lines: int = 200) -> str:
    return "".join(f"This is line {i} of {name}.\n" for i in range(lines))


def whole(page: TokenPage) -> list[int]:
    """All tokens of an example, in order."""
    (question,) = page.questions
    return [*page.tokens, *question.prompt, *question.answer]


def contains(tokens: list[int], part: list[int]) -> bool:
    return any(tokens[i : i + len(part)] == part for i in range(len(tokens) - len(part) + 1))


def test_an_example_is_continuous_text_of_its_split(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(prose("a"), encoding="utf-8")
    task = TextFiles(path=str(tmp_path / "a.txt"), window_tokens=16, num_windows=2)
    tokens = load_smollm2().encode(prose("a"))
    edge = len(tokens) - int(0.1 * len(tokens))
    for split, part in (("train", tokens[:edge]), ("test", tokens[edge:])):
        starts = set()
        for page in task.pages(split, 0, 0, range(20)):  # type: ignore[arg-type]
            assert len(page.tokens) == 32
            assert len(whole(page)) == 48
            assert contains(part, whole(page))
            assert page.questions[0].kind == "text"
            assert task.depth_of(page.questions[0]) == 1
            starts.add(page.tokens)
        assert len(starts) > 15


def test_labels_are_the_rest_of_the_last_window(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(prose("a"), encoding="utf-8")
    task = TextFiles(path=str(tmp_path), window_tokens=16)
    batch = task.batch("train", 0, 0, range(3))
    assert batch.tokens.shape == (3, 32)
    assert batch.loss_mask.sum(1).tolist() == [15] * 3
    for row, page in enumerate(task.pages("train", 0, 0, range(3))):
        assert [*batch.tokens[row, :17].tolist(), *batch.targets[row, 16:31].tolist()] == whole(page)
        ((shown, predicted, depth),) = asked(task, batch, row)
        assert (shown + predicted, depth) == (decode(whole(page)[16:]), 1)
        assert page.questions[0].words == page.questions[0].answer  # no token of it is an end
    assert task.depths() == range(1, 2)


def test_files_of_a_folder_follow_one_another(tmp_path: Path) -> None:
    for name in ("b/one.txt", "a.txt", ".hidden/x.txt", "other.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(prose(name, 12), encoding="utf-8")
    task = TextFiles(path=str(tmp_path), window_tokens=64, held_out=0.25)
    parts = [load_smollm2().encode(prose(name, 12)) for name in ("a.txt", "b/one.txt")]
    edges = [len(part) - int(0.25 * len(part)) for part in parts]
    train = [token for part, edge in zip(parts, edges, strict=True) for token in part[:edge]]
    pages = task.pages("train", 0, 0, range(20))
    assert all(contains(train, whole(page)) for page in pages)
    assert any(" a.txt" in decode(whole(page)) and "one.txt" in decode(whole(page)) for page in pages)


def test_pieces_of_a_long_file_are_its_text(tmp_path: Path) -> None:
    text = prose("a long file", 4000)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8", newline="\r\n")
    task = TextFiles(path=str(tmp_path), window_tokens=2048, num_windows=4)
    for page in task.pages("train", 0, 0, range(6)):
        assert decode(whole(page)) in text


@pytest.mark.parametrize("kind", ["uint16", "uint32", "npy"])
def test_shards_stay_on_the_disk(tmp_path: Path, kind: str) -> None:
    numbers = np.arange(1000)
    if kind == "npy":
        np.save(tmp_path / "x.npy", numbers.astype(np.int64))
    else:
        numbers.astype(kind).tofile(tmp_path / "x.bin")
    settings: dict[str, Any] = {} if kind == "npy" else {"shard_type": kind}
    task = TextFiles(path=str(tmp_path), window_tokens=16, num_windows=3, **settings)
    for page in task.pages("train", 0, 0, range(20)):
        read = whole(page)
        assert read == list(range(read[0], read[0] + 64))
        assert read[-1] < 900
    assert all(whole(page)[0] >= 900 for page in task.pages("test", 0, 0, range(20)))
    (file,) = tmp_path.iterdir()
    assert isinstance(_tokens(file, task.shard_type, "smollm2"), np.memmap)


def test_examples_do_not_depend_on_order_or_division(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(1000))
    task = TextFiles(path=str(tmp_path), window_tokens=16)
    pages = task.pages("train", 1, 2, range(6))
    assert task.pages("train", 1, 2, range(5, -1, -1)) == pages[::-1]
    assert task.pages("train", 1, 2, range(3, 5)) == pages[3:5]
    assert task.pages("train", 2, 2, range(6)) != pages


def test_unknown_tokens_get_a_sentence(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(1000) + VOCAB_SIZE)
    task = TextFiles(path=str(tmp_path), window_tokens=16)
    for split, first in (("train", range(900)), ("test", range(900, 1000))):  # counted from the beginning of the file
        with pytest.raises(UserError, match=r"token \d+ of .*x\.npy is \d+, but ids must be in 0\.\.49151") as error:
            task.batch(split, 0, 0, range(1))  # type: ignore[arg-type]
        place, token = map(int, re.findall(r"\d+", str(error.value).replace(str(tmp_path), ""))[:2])
        assert place in first
        assert token == VOCAB_SIZE + place


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt has 0 tokens in the train split .* but an example needs 32"),
        ("a.txt", b"too short", r"has 2 tokens in the train split"),
        ("a.txt", b"bad \xff byte", r"a\.txt is not UTF-8 at byte 4"),
        ("a.pdf", b"x", r"a\.pdf must be prose .* or token shards"),
        ("a.bin", b"abc", r"a\.bin has 3 bytes, no multiple of the 2 of uint16"),
        ("a.bin", b"", r"a\.bin has 0 tokens"),
        ("a.npy", b"no array", r"cannot read .*a\.npy"),
    ],
)
def test_bad_files_get_a_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        TextFiles(path=str(tmp_path / name), window_tokens=16).batch("train", 0, 0, range(1))
    assert "\n" not in str(error.value)


def test_bad_folders_get_a_sentence(tmp_path: Path) -> None:
    task = TextFiles(path=str(tmp_path), window_tokens=16)
    with pytest.raises(UserError, match="holds no prose"):
        task.batch("train", 0, 0, range(1))
    np.save(tmp_path / "x.npy", np.zeros((10, 10)))
    with pytest.raises(UserError, match=r"x\.npy holds float64 numbers of shape \[10, 10\]: it must be"):
        task.batch("train", 0, 0, range(1))
    (tmp_path / "a.md").write_text(prose("a"), encoding="utf-8")
    with pytest.raises(UserError, match="holds both prose and token shards"):
        task.batch("train", 0, 0, range(1))
    with pytest.raises(UserError, match="there is no file or folder"):
        TextFiles(path=str(tmp_path / "none")).batch("train", 0, 0, range(1))
