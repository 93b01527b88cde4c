"""A fuzzer: 2,000 damaged files of all kinds, each refused in one sentence, or as good as it was.

What may be accepted differs. Files with a checksum (checkpoints, memories, weights in saved folders, cached windows)
mean exactly what they meant. Text that people write or read (recipes, cards, configs, data), and checkpoints from
before the checksum, may mean something else, but then it is as valid as any: it goes through its model unchanged, and
what is made of it can be used.
"""

from __future__ import annotations

import shutil
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import Change, damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kinds_of_files import KINDS_OF_FILES, Kind

from reverie.errors import OldFileWarning, UntrainedWarning, UserError

pytestmark = [pytest.mark.slow, pytest.mark.hf]

PATIENT: Any = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
LONGEST_S = 20  # of a try on a busy machine; most take milliseconds


def test_there_are_two_thousand_tries() -> None:
    assert sum(kind.tries for kind in KINDS_OF_FILES.values()) == 2000


@pytest.mark.parametrize("name", KINDS_OF_FILES)
def test_what_is_damaged_is_refused_in_one_sentence_or_as_good_as_it_was(name: str, tmp_path: Path) -> None:
    kind, folder, whole = KINDS_OF_FILES[name], tmp_path / "used", tmp_path / "whole"
    folder.mkdir()
    kind.make(folder)
    shutil.copytree(folder, whole)
    if name == "cards":
        shutil.copytree(folder, folder / "whole")
    with patience():
        meaning = kind.use(folder)
    files = {path: found for path in sorted(whole.rglob("*")) if path.is_file() and (found := changes(kind, path.name))}
    tries = st.sampled_from(sorted(files)).flatmap(lambda path: try_of(path, files[path]))
    refused = 0

    @settings(max_examples=kind.tries, derandomize=True, database=None, suppress_health_check=PATIENT)
    @given(tries)
    def attempt(one: tuple[Path, bytes]) -> None:
        nonlocal refused
        path, content = one
        place = folder / path.relative_to(whole)
        place.write_bytes(content)
        try:
            with patience():
                found = kind.use(folder)
        except UserError as error:
            refused += 1
            assert_one_sentence(str(error), "" if name in ("recipe", "cached") else str(folder))  # or section and key
        else:
            assert not path.name.endswith(kind.exact or "?") or same(found, meaning)
        finally:
            shutil.copyfile(path, place)

    attempt()
    assert refused >= kind.tries // 5 or name == "store"


def assert_one_sentence(message: str, names: str) -> None:
    assert names in message
    assert "\n" not in message
    assert 0 < len(message) < 1000


def changes(kind: Kind, name: str) -> tuple[Change, ...]:
    return next((found for end, found in kind.damage.items() if name.endswith(end)), ())


def try_of(path: Path, found: tuple[Change, ...]) -> st.SearchStrategy[tuple[Path, bytes]]:
    return st.tuples(st.just(path), damaged(path.read_bytes(), found))


def same(found: Any, wanted: Any) -> bool:
    """Equal, tensors bit for bit."""
    if isinstance(wanted, torch.Tensor):
        return isinstance(found, torch.Tensor) and found.dtype == wanted.dtype and torch.equal(found, wanted)
    if isinstance(wanted, tuple | list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return bool(found == wanted)


@contextmanager
def patience() -> Iterator[None]:
    """Nothing may take long, or warn of anything but old files and libraries' own ways."""

    def end(*_: object) -> None:
        raise AssertionError(f"it took more than {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(LONGEST_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", OldFileWarning)
            warnings.simplefilter("ignore", UntrainedWarning)
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
