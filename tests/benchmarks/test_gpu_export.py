"""The state in parts: what is worth most goes first, limits hold, and nothing but what was cut comes back."""

from __future__ import annotations

import importlib
import io
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_recipe import tiny_recipe

from reverie.errors import UserError
from reverie.results.checkpoint import FILE_NAME, load_checkpoint
from reverie.results.run import CARD_NAME
from reverie.train.run import train

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))
export, pieces, record = (importlib.import_module(name) for name in ("export", "pieces", "record"))

RUNS = ("a/done-seed-0", "a/going-seed-0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train(tiny_recipe(model={"width": 64, "mlp_width": 256}), out)
    return out


@pytest.fixture
def state(tmp_path: Path, trained: Path) -> Path:
    """One run that is done, and one that is going."""
    folder = tmp_path / "state"
    for name in RUNS:
        (folder / "runs" / name).mkdir(parents=True)
        (folder / "runs" / name / FILE_NAME).write_bytes((trained / FILE_NAME).read_bytes())
    (folder / "runs" / RUNS[0] / CARD_NAME).write_bytes((trained / CARD_NAME).read_bytes())
    (folder / "results" / "cards").mkdir(parents=True)
    (folder / "results" / "cards" / "a.json").write_text("{}")
    (folder / "log.txt").write_text("a line\n" * 300_000)
    return folder


@pytest.fixture
def write(state: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Fills `out`; returns what is left behind."""

    def call(part_mib: float, total_mib: float, max_files: int = 8) -> list[str]:
        kept = record.Record(state / "session.json", "p")
        kept.save()
        log = record.Log(tmp_path / "log", record.Budget(10))
        export.write(state, tmp_path / "out", export.Limits(part_mib, total_mib, max_files), kept, log)
        return kept["left_out"]

    return call


def restored(tmp_path: Path) -> Path:
    assert export.restore(tmp_path / "out", tmp_path / "new")
    return tmp_path / "new"


def size(path: Path) -> float:
    return path.stat().st_size / 2**20


def test_all_of_it_comes_back(write: Callable[..., list[str]], state: Path, tmp_path: Path) -> None:
    assert write(15, 60) == []
    new = restored(tmp_path)
    going, done = (new / "runs" / name / FILE_NAME for name in reversed(RUNS))
    assert going.read_bytes() == (state / "runs" / RUNS[1] / FILE_NAME).read_bytes()
    assert (new / "runs" / RUNS[0] / CARD_NAME).read_bytes() == (state / "runs" / RUNS[0] / CARD_NAME).read_bytes()
    assert (new / "results" / "cards" / "a.json").is_file()
    assert size(new / "log.txt") == pytest.approx(1)
    whole, weights = load_checkpoint(state / "runs" / RUNS[0] / FILE_NAME), load_checkpoint(done)
    assert weights.recipe == whole.recipe
    assert set(weights.tensors) == {name for name in whole.tensors if name.startswith("model.")}
    assert all(torch.equal(x, whole.tensors[name]) for name, x in weights.tensors.items())


@pytest.mark.parametrize("limits", [(1, 60, 8), (1, 4, 8), (1, 2.6, 8), (1, 60, 5), (4, 60, 4)])
def test_limits_hold(write: Callable[..., list[str]], tmp_path: Path, limits: tuple[float, float, int]) -> None:
    write(*limits)
    files = [*(tmp_path / "out").iterdir()]
    assert len(files) <= limits[2]
    assert max(map(size, files)) <= limits[0]
    assert sum(map(size, files)) <= limits[1]
    restored(tmp_path)


def test_weights_go_before_checkpoints_and_give_up_digits_first(
    write: Callable[..., list[str]], state: Path, tmp_path: Path
) -> None:
    """Room for the log, which is 1 MiB, and hardly more."""
    weights = size(state / "runs" / RUNS[1] / FILE_NAME) / 2.5  # without the optimisers'
    left = write(15, 0.5 + 1.06 + weights / 2 + 0.05)
    assert [name.split(" ")[0] for name in left] == [f"runs/{RUNS[1]}/{FILE_NAME}"]
    assert RUNS[1] in (tmp_path / "out" / "summary.txt").read_text()
    found = load_file(restored(tmp_path) / "runs" / RUNS[0] / FILE_NAME)
    assert {x.dtype for x in found.values() if x.is_floating_point()} == {torch.bfloat16}


def test_the_page_is_there_before_the_parts(
    write: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that is killed while it writes them still says what it has found."""
    monkeypatch.setattr(pieces, "cut", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(15, 60)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"session.json", "summary.txt"}


@pytest.mark.parametrize(("total_mib", "times"), [(60, 1), (1.6, 0)])
def test_weights_are_read_once_and_only_if_they_fit(
    write: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, total_mib: float, times: int
) -> None:
    read: list[Path] = []
    whole = export._save_weights
    monkeypatch.setattr(export, "_save_weights", lambda path, *rest: (read.append(path), whole(path, *rest)))
    left = write(15, total_mib)
    assert len(read) == times
    assert any(name.startswith(f"runs/{RUNS[0]}/{FILE_NAME} (") for name in left) == (times == 0)


def test_a_damaged_checkpoint_spoils_nothing_else(write: Callable[..., list[str]], state: Path, tmp_path: Path) -> None:
    (state / "runs" / RUNS[0] / FILE_NAME).write_bytes(b"cut short")
    write(15, 60)
    new = restored(tmp_path) / "runs"
    assert not (new / RUNS[0] / FILE_NAME).exists()
    assert (new / RUNS[1] / FILE_NAME).exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_are_known_without_reading(trained: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    export._save_weights(trained / FILE_NAME, dtype, tmp_path / "weights")
    found, known = (tmp_path / "weights").stat().st_size, export._weights_size(trained / FILE_NAME, dtype)
    assert found <= known <= 1.05 * found + 2**14


def test_a_second_export_replaces_the_first(write: Callable[..., list[str]], tmp_path: Path) -> None:
    write(1, 60)
    many = len([*(tmp_path / "out").iterdir()])
    write(15, 60)
    assert len([*(tmp_path / "out").iterdir()]) == 4 < many
    restored(tmp_path)


def test_a_state_that_is_there_is_kept(write: Callable[..., list[str]], state: Path, tmp_path: Path) -> None:
    write(15, 60)
    (state / "results" / "cards" / "a.json").write_text("newer")
    assert not export.restore(tmp_path / "out", state)
    assert (state / "results" / "cards" / "a.json").read_text() == "newer"


@pytest.mark.parametrize("harm", ["a flipped bit", "a missing part"])
def test_a_damaged_part_is_refused(write: Callable[..., list[str]], tmp_path: Path, harm: str) -> None:
    write(1, 60)
    part = tmp_path / "out" / "state.tar.001"
    if harm == "a missing part":
        part.unlink()
    else:
        content = bytearray(part.read_bytes())
        content[1000] ^= 1
        part.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"state\.tar\.001 is (missing|not what was cut)"):
        export.restore(tmp_path / "out", tmp_path / "new")
    assert not (tmp_path / "new" / "session.json").exists()


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "link"])
def test_a_tar_that_reaches_outside_is_refused(tmp_path: Path, name: str) -> None:
    tar = tmp_path / "state.tar"
    with tarfile.open(tar, "w") as archive:
        member: Any = tarfile.TarInfo(name)
        if name == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        else:
            member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    pieces.cut(tar, tmp_path / "out", 2**20)
    with pytest.raises(UserError, match="does not hold a state that can be gone on with"):
        export.restore(tmp_path / "out", tmp_path / "new")
    assert not (tmp_path / "outside.txt").exists()


def test_it_must_be_a_state(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("no state")
    with tarfile.open(tmp_path / "state.tar", "w") as archive:
        archive.add(tmp_path / "some.txt", "some.txt")
    pieces.cut(tmp_path / "state.tar", tmp_path / "out", 2**20)
    with pytest.raises(UserError, match=r"session\.json is missing in it"):
        export.restore(tmp_path / "out", tmp_path / "new")
