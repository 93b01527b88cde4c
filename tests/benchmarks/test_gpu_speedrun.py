"""The speedrun at tiny size on a CPU: it goes on from call to call, leaves cards and figures."""

from __future__ import annotations

import itertools
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import check_kernels
import pytest
import speedrun
import throughput
import torch
from speedrun import Later, Plan, Speedrun
from tiny_recipe import write_tiny

from reverie.bench.count import count_flops
from reverie.interrupts import TIME_IS_UP, Stopped
from reverie.recipe import load_recipe
from reverie.results.card import RunCard, load_card

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
TINY = throughput.Study(
    throughput.ouro().model_copy(
        update={"layers": ("attn", "jet-only"), "vocab_size": 64, "width": 32, "mlp_width": 48, "num_heads": 2}
        | {"fast_heads": 2, "key_size": 8, "value_size": 16, "backend": "chunked"}
    ),
    text=20,
    texts=2,
    window=6,
    at_once=(2, 1),
)


def plan_in(folder: Path, **options: Any) -> Plan:
    runs = {f"n{N}": (f"sleep.num_sleep_passes={N}",) for N in (1, 2)}
    return Plan("2b", "title", str(write_tiny(folder)), runs, 3, ("train.eval_examples=8",), **options)


def call(out: Path, seconds: float = 1e4) -> Speedrun:
    return Speedrun(out, CPU, time.monotonic() + seconds)


def card_of(out: Path, run: str) -> RunCard:
    card = load_card(out / f"2b-{run}.json")
    assert isinstance(card, RunCard)
    return card


def test_a_figure_leaves_cards_and_is_not_trained_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, plan = tmp_path / "out", plan_in(tmp_path)
    call(out).figure(plan)
    for passes, run in enumerate(plan.runs, 1):
        card = card_of(out, run)
        assert card.num_sleep_passes == passes
        assert [point.step for point in card.curve] == [2, 4, 6]
    assert (out / "2b.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(speedrun, "train", lambda *_, **__: pytest.fail("trained again"))
    call(out).figure(plan)


def test_what_stops_in_time_is_gone_on_with_in_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, plan, train, asked = tmp_path / "out", plan_in(tmp_path), speedrun.train, []

    def stopping(*arguments: Any, max_seconds: float, **options: Any) -> Any:
        asked.append((max_seconds, options["resume"]))
        train(*arguments, **options, max_seconds=1e-9)  # a step, and no more
        return pytest.fail("it did not stop")

    with monkeypatch.context() as patch:
        patch.setattr(speedrun, "train", stopping)
        for _ in range(2):
            with pytest.raises(Later):
                call(out, 500).figure(plan)
    assert [resume for _, resume in asked] == [False, True]
    assert all(440 < seconds < 480 for seconds, _ in asked)
    call(out).figure(plan)
    assert [point.step for point in card_of(out, "n1").curve] == [2, 4, 6]
    with pytest.raises(Later):
        call(tmp_path / "other", seconds=40).figure(plan)  # too little to begin anything
    assert not (tmp_path / "other" / "runs").exists()


def test_as_many_steps_as_fit_the_same_for_all_runs_and_all_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The clock says 0.1 s a step of N = 2; N = 1 is expected to take half of that: 3 s make 20 steps."""
    clock = itertools.count(step=0.1)
    monkeypatch.setattr(speedrun, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    plan = plan_in(tmp_path, seconds=3.0)
    monkeypatch.setattr(speedrun, "WARM_UP", 2)
    monkeypatch.setattr(speedrun, "TIMED_S", 0.45)
    here = Speedrun(tmp_path / "out", CPU, 1e9)
    assert here._fitting_steps(plan) == pytest.approx(20, abs=1)
    here.steps = {"2b": 4}
    assert [here._recipe(plan, run).train.steps for run in plan.runs] == [4, 4]
    assert not (tmp_path / "out" / "runs" / "timed").exists()


def test_throughput_is_measured_way_by_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measure, done = throughput.measure, []

    def once(trainer: Any, way: Any) -> Any:
        done.append(way.name)
        if len(done) == 3:
            raise Stopped(TIME_IS_UP, 0, 0)  # whatever ends it
        return measure(trainer, way)

    monkeypatch.setattr(throughput, "measure", once)
    with pytest.raises(Stopped):
        call(tmp_path).throughput(TINY)
    call(tmp_path).throughput(TINY)
    card = json.loads((tmp_path / "throughput.json").read_text())
    assert list(card["rows"]) == [way.name for way in throughput.WAYS]
    assert done == [way.name for way in (*throughput.WAYS[:3], *throughput.WAYS[2:])]
    assert all(row["tokens_per_s"] > 0 and row["texts_at_once"] == 2 for row in card["rows"].values())
    assert card["wrong"] is None
    assert (tmp_path / "throughput.png").is_file()


def test_parallel_and_sliding_are_one_function_and_hard_eviction_is_not():
    trainer = throughput.Trainer(TINY, CPU)
    rows = {way.name: trainer.step(way, 1) for way in throughput.WAYS[:3]}
    parallel, sliding, hard = rows
    assert throughput.disagreement(rows) is None
    rows[sliding] = {**rows[sliding], "gradient_norm": 1.1 * rows[sliding]["gradient_norm"]}
    assert str(throughput.disagreement(rows)).startswith("gradient_norm is")
    assert rows[parallel]["loss"] != pytest.approx(rows[hard]["loss"], rel=1e-5)


def test_texts_at_once_make_no_difference_and_memory_that_runs_out_makes_them_fewer(monkeypatch: pytest.MonkeyPatch):
    trainer = throughput.Trainer(TINY, CPU)
    one, two = (trainer.step(throughput.WAYS[4], n) for n in (1, 2))
    assert one == pytest.approx(two, rel=2e-2)
    measured = throughput._measured

    def full(trainer: Any, way: Any, at_once: int) -> Any:
        if at_once > 1:
            raise torch.OutOfMemoryError
        return measured(trainer, way, at_once)

    monkeypatch.setattr(throughput, "_measured", full)
    assert throughput.measure(trainer, throughput.WAYS[2])["texts_at_once"] == 1


@pytest.mark.parametrize("way", throughput.WAYS[2:], ids=lambda way: way.name)
def test_operations_are_those_that_torch_counts(way: throughput.Way):
    """To the counter a chunk of the rule is whole, and so is attention; the head is made again in the backward pass."""
    trainer = throughput.Trainer(TINY._replace(text=18), CPU)
    counted = count_flops(lambda: trainer._nats(way, trainer.tokens, trainer.targets).backward())
    head = 2 * 2 * trainer.labels(way) * 32 * 64
    assert throughput.model_operations(trainer, way) == pytest.approx(counted - head, rel=0.05)


def test_a_curve_for_each_run(tmp_path: Path):
    call(tmp_path / "out").figure(plan_in(tmp_path))
    drawing = speedrun.curves("t", {run: card_of(tmp_path / "out", run) for run in ("n1", "n2")})
    lines = [line for line in drawing.axes[0].get_lines() if len(line.get_xdata()) == 3]  # pyright: ignore[reportArgumentType]
    assert len({line.get_label() for line in lines}) == 2


def test_the_command_refuses_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert speedrun.main(["--out", str(tmp_path), "--only", "3"]) == 2
    assert capsys.readouterr().err == "error: --only takes 2a, 2b, throughput, got '3'\n"
    if not torch.cuda.is_available():
        assert speedrun.main(["--out", str(tmp_path)]) == 2
        assert "there is no CUDA device" in capsys.readouterr().err


def test_the_plans_are_what_the_paper_compares():
    here = Speedrun(Path("nowhere"), CPU, 1e9)
    here.steps = {"2b": 1000}
    a, b = speedrun.PLANS
    recipes = [here._recipe(a, run) for run in a.runs]
    assert [list(recipe.task.depths()) for recipe in recipes] == [[t] for t in (4, 8, 10, 12, 14, 16)]
    assert all(round(r.train.steps * r.train.batch_size * r.task.sequence_length / 1e6) == 40 for r in recipes)
    assert [here._recipe(b, run).sleep.num_sleep_passes for run in b.runs] == [1, 2, 3, 4]
    assert here._recipe(b, "n4").train.steps == 1000


def test_what_the_documents_tell_to_run_is_there(capsys: pytest.CaptureFixture[str]):
    """Scripts and their options; recipes of `reverie train`."""
    root = Path(__file__).parents[2]
    text = (root / "docs/GPU.md").read_text() + (root / "docs/LOG.md").read_text().split("\n## 20")[0]
    scripts = {"check_kernels": check_kernels.main, "speedrun": speedrun.main}
    commands = re.findall(r"benchmarks/gpu/(\w+)\.py(.*)", text)
    assert {name for name, _ in commands} >= {"check_kernels", "speedrun"}
    for name, rest in commands:
        with pytest.raises(SystemExit):
            scripts[name](["--help"])
        assert set(re.findall(r"--[a-z-]+", rest)) <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    trained = re.findall(r"reverie train ([a-z0-9_]+/[^\s`]+)", text)
    assert trained
    assert all(load_recipe(recipe).train.steps > 0 for recipe in trained)
