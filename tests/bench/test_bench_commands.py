"""`reverie bench`: what it prints where, what it leaves, and what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Reverie, assert_one_line, in_empty_folder, the_json
from fake_benchmark import PEAK, benchmark_card, never

from reverie.bench import ops, run
from reverie.bench.card import BenchmarkCard
from reverie.results.card import Report, read_card

NAMES = ["ops", "train", "sleep", "memory", "wake", "decode", "pretrained", "read", "serve"]


@pytest.fixture
def reverie(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Reverie:
    return in_empty_folder(monkeypatch, capsys, tmp_path)


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Benchmarks with an invented result; returns which were run."""
    names = []

    def run_benchmark(name: str, report: Report) -> BenchmarkCard:
        names.append(name)
        report(0, 2, "the first")
        report(1, 2, "the second")
        return benchmark_card(name=name)

    monkeypatch.setattr("reverie.bench.run.run_benchmark", run_benchmark)
    return lambda: names


@pytest.mark.parametrize("name", NAMES)
def test_json_is_one_object_and_progress_goes_to_stderr(
    reverie: Reverie, invented: Callable[[], list[str]], name: str
) -> None:
    done = reverie("bench", name, "--json")
    result = the_json(done)
    assert list(result) == ["name", "ratio", "target", "met", "details"]
    assert invented() == [result["name"]] == [name]
    assert done.err.startswith(f"{name}  part 0/2  the first  ETA ")
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.usefixtures("invented")
def test_out_is_a_card(reverie: Reverie) -> None:
    done = reverie("bench", "ops", "--out", "deep/er/ops.json")
    assert done.code == 0
    assert done.out.startswith("ops: ratio 2, target at least 3: not met.")
    assert read_card("deep/er/ops.json", {"benchmark": BenchmarkCard}).name == "ops"
    assert [path.name for path in Path("deep/er").iterdir()] == ["ops.json"]


@pytest.mark.usefixtures("invented")
def test_a_result_that_cannot_be_written_is_shown_all_the_same(reverie: Reverie) -> None:
    Path("a file").touch()
    done = reverie("bench", "ops", "--out", "a file/ops.json")
    assert done.code == 2
    assert done.out.startswith("ops: ratio 2")
    assert done.err.splitlines()[-1].startswith("error: cannot write a file/ops.json")


@pytest.mark.parametrize("name", ["ops", "train"])
def test_without_transformers_the_extra_is_named(reverie: Reverie, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(run, "measure_peak", lambda: PEAK)
    done = reverie("bench", name)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1].startswith("error: this benchmark measures against transformers")
    assert done.err.splitlines()[-1].endswith("pip install 'reverie[bench]'")


def test_a_wrong_result_leaves_nothing(reverie: Reverie, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.ours
    monkeypatch.setattr(ops, "ours", lambda *inputs: tuple(1.001 * x for x in right(*inputs)))
    monkeypatch.setattr(ops, "alternate", never)
    monkeypatch.setattr(run, "measure_peak", lambda: PEAK)
    done = reverie("bench", "ops", "--json", "--out", "ops.json")
    assert_one_line(done._replace(err=done.err.splitlines(keepends=True)[-1]), "nothing is measured", "T = 64")
    assert list(Path.cwd().iterdir()) == []
