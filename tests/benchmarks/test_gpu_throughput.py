"""The throughput benchmark: its ways of training agree where they must, and whatever fails, the card has the rest."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.utils.flop_counter import FlopCounterMode

from reverie.errors import UserError

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _path() -> Iterator[None]:
    """Scripts import what lies beside them by its bare name; other tests may use the same names."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


def script(name: str) -> Any:
    return importlib.import_module(name)


def toy(**changes: Any) -> Any:
    """Two windows of 5, and a rest of 2."""
    study = script("throughput").TOY._replace(windows=(5,), at_once=(1,), dtype=torch.float32)
    return study._replace(**changes)


def gradients(study: Any, way: str, passes: int = 1, **setting: Any) -> tuple[Tensor, dict[str, Tensor]]:
    measure, configuration = script("throughput_measure"), script("throughput_study").Configuration(way, 5, passes)
    trainer = measure.Trainer(study, CPU, compiled=False)
    loss = trainer.gradients(configuration, measure.Setting(**{"at_once": 1, "checkpoint": "none", **setting}))
    found = {name: p.grad for name, p in trainer.model.named_parameters()}
    assert all(slope is not None for slope in found.values())
    return loss, found


def test_window_by_window_is_the_parallel_baseline() -> None:
    """Sliding, in loss and every gradient; under hard eviction the function is another one."""
    (loss, wanted), (sliding, got), (hard, _) = (gradients(toy(), way) for way in ("parallel", "sliding", "hard"))
    torch.testing.assert_close(sliding, loss)
    for name, slope in wanted.items():
        torch.testing.assert_close(got[name], slope, rtol=1e-4, atol=1e-7, msg=name)
    assert abs(hard - loss) > 1e-3


@pytest.mark.parametrize("checkpoint", ["none", "pass", "window"])
@pytest.mark.parametrize("way", ["sliding", "asleep"])
def test_settings_change_no_gradient(way: str, checkpoint: str) -> None:
    """Neither what is made again nor how many texts go at once."""
    passes = 2 if way == "asleep" else 1
    loss, wanted = gradients(toy(), way, passes)
    other, got = gradients(toy(), way, passes, at_once=2, checkpoint=checkpoint)
    torch.testing.assert_close(other, loss)
    for name, slope in wanted.items():
        torch.testing.assert_close(got[name], slope, rtol=1e-4, atol=1e-6, msg=name)


def test_copies_compute_what_the_model_does() -> None:
    """In float32 to the last digits; gradients of bfloat16 copies are float32 and close."""
    study, labels = toy(), 2 * 12
    trainer = script("throughput_measure").Trainer(study, CPU, compiled=False)
    logits = trainer.model(trainer.tokens)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), trainer.targets.flatten(), reduction="sum") / labels
    truth = dict(
        zip(dict(trainer.model.named_parameters()), torch.autograd.grad(loss, trainer.model.parameters()), strict=True)
    )
    whole = script("throughput_study").Configuration("parallel", 12)
    for dtype, error in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        other = script("throughput_measure").Trainer(study._replace(dtype=dtype), CPU, compiled=False)
        got = other.gradients(whole, script("throughput_measure").Setting(2, "none"))
        assert got.item() == pytest.approx(loss.item(), rel=error)
        errors = [p.grad - truth[name] for name, p in other.model.named_parameters()]
        assert {slope.dtype for slope in errors} == {torch.float32}
        assert get_total_norm(errors) <= error * get_total_norm(truth.values())


# In a process of its own: annotations that are checked cannot be compiled.
COMPILED = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from throughput import TOY
from throughput_measure import Setting, Trainer
from throughput_study import Configuration
import linear_loss
from reverie.train import compiled

compiled.BACKEND = "aot_eager"
linear_loss._compiled_step = lambda: linear_loss.nats_and_slopes
model = TOY.model.model_copy(update={"layers": ("attn", "jet-only")})
study, cpu = TOY._replace(model=model, text=8, dtype=torch.float32), torch.device("cpu")
trainers = [Trainer(study, cpu, compiled=compiled) for compiled in (False, True)]
setting = Setting(at_once=2, checkpoint="window")
torch.testing.assert_close(*(trainer.gradients(Configuration("asleep", 4, 2), setting) for trainer in trainers))
for plain, traced in zip(*(trainer.model.parameters() for trainer in trainers), strict=True):
    torch.testing.assert_close(traced.grad, plain.grad, rtol=1e-4, atol=1e-6)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 1
"""


def test_compiled_it_computes_the_same() -> None:
    """Traced, without code generation: blocks on copies, the rule left out of them, checkpointing around them."""
    done = subprocess.run([sys.executable, "-c", COMPILED, str(FOLDER)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


CEILINGS = {"bfloat16_tflops": 1.0, "copy_tb_per_s": 0.1}


def test_everything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    throughput, out = script("throughput"), tmp_path / "card.json"
    monkeypatch.setattr(throughput, "measured_ceilings", lambda _: CEILINGS)
    throughput.main(["--toy", "--device", "cpu", "--out", str(out), "--only", "-4"])
    card = json.loads(out.read_text())
    assert list(card["rows"]) == ["parallel-4", "sliding-4", "hard-4", "asleep-4-N1", "asleep-4-N2"]
    printed = capsys.readouterr().out
    for name, row in card["rows"].items():
        assert f"| {name} |" in printed
        assert "failed" not in row, row
        assert row["tokens_per_s"] == pytest.approx(24 / row["seconds"])
        assert row["parts_s"].keys() == {"forward and backward", "clip", "Muon", "AdamW", "copies"}
        assert 0 < row["optimiser_share"] < 1
        assert {kind["kind"] for kind in row["profile"]} >= {"matrix products", "idle"}
    assert card["rows"]["sliding-4"]["loss"] == pytest.approx(card["rows"]["parallel-4"]["loss"], rel=3e-3)
    assert out.with_suffix(".png").stat().st_size > 10_000


def stub(fits: Mapping[str, int], calls: list[str]) -> Any:
    """In place of `measure`: so many texts at once fit, by configuration; an error for one that is not there."""

    def measure(_: Any, configuration: Any, setting: Any, __: Any) -> dict[str, Any]:
        calls.append(f"{configuration.name} {setting.at_once} {setting.checkpoint}")
        if configuration.name not in fits:
            raise RuntimeError("ptxas went mad\nat length")
        if setting.at_once > fits[configuration.name]:
            raise (torch.OutOfMemoryError("too large") if setting.at_once % 2 else RuntimeError("CUDA out of memory"))
        loss = 9.0 if configuration.way == "sliding" and configuration.window == 6 else 4.0
        row = {"tokens_per_s": 1.0, "mfu": 0.1, "peak_gib": 1.0, "loss": loss, "gradient_norm": 1.0}
        return row | {"done_share_of_peak": 0.2, "optimiser_share": 0.1}

    return measure


def begin(folder: Path, study: Any) -> Any:
    """A card whose ceilings need not be measured."""
    card = script("throughput_card").Card.begin(folder / "card.json", study, CPU, "flash")
    card.content["ceilings"] = CEILINGS
    return card


def test_failures_are_noted_and_the_others_go_on(tmp_path: Path) -> None:
    throughput, calls = script("throughput"), []
    cards, study = script("throughput_card"), throughput.TOY
    card = begin(tmp_path, study)
    fits = {"parallel-4": 2, "hard-4": 1, "asleep-4-N1": 0, "parallel-6": 2, "sliding-6": 2, "asleep-6-N2": 2}
    throughput.run(card, study, study.configurations(), CPU, 60.0, measure=stub(fits, calls))
    rows = json.loads((tmp_path / "card.json").read_text())["rows"]
    assert list(rows) == [configuration.name for configuration in study.configurations()]
    assert rows["sliding-4"]["failed"] == "RuntimeError: ptxas went mad"
    assert rows["hard-4"]["at_once"] == 1
    assert {attempt["failed"] for attempt in rows["hard-4"]["attempts"]} == {"out of memory"}
    assert rows["asleep-4-N1"]["failed"] == "out of memory at every setting"
    assert len(rows["asleep-4-N1"]["attempts"]) == 6
    assert rows["sliding-6"]["failed"] == "its loss is 9, of parallel it is 4"
    printed = cards.table(card)
    assert "| parallel-4 | 2 | none | 1 |" in printed
    assert "* sliding-4: RuntimeError: ptxas went mad" in printed


def test_the_next_call_goes_on_behind_the_last(tmp_path: Path) -> None:
    throughput, study = script("throughput"), script("throughput").TOY
    everything, calls = study.configurations(), []
    fits = dict.fromkeys((configuration.name for configuration in everything), 2)

    def call(configurations: Any, seconds: float = 60.0, *, again: bool = False) -> None:
        card = begin(tmp_path, study)
        throughput.run(card, study, configurations, CPU, seconds, again=again, measure=stub(fits, calls))

    call(everything[:3])
    call(everything)
    assert len(calls) == len(everything) == len(begin(tmp_path, study).rows)
    call(everything[:1], again=True)
    call(everything, seconds=-1.0, again=True)
    assert len(calls) == len(everything) + 1


def test_seconds_count_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the process: with imports, and the check of the backend, whose result is in the card."""
    throughput, seen = script("throughput"), []
    monkeypatch.setattr(
        throughput, "run", lambda card, *rest, **named: seen.append((card.content["kernels"], rest[-1]))
    )
    monkeypatch.setattr(throughput, "save_figure", lambda *arguments: None)
    monkeypatch.setattr(throughput, "figure", lambda card: None)
    arguments = ["--toy", "--device", "cpu", "--out", str(tmp_path / "card.json"), "--seconds", "100"]
    throughput.main(arguments, time.monotonic() - 50)
    [(kernels, seconds)] = seen
    assert 0 < seconds < 50
    assert kernels["cases"] >= 16


def test_a_wrong_backend_gets_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    throughput = script("throughput")
    found = {"passed": False, "why": "T 160: dq is off by 1.0e+00", "rows": []}
    monkeypatch.setattr(throughput.kernels, "check_backend", lambda *arguments: found)
    with pytest.raises(UserError, match="backend chunked is not right on this machine: T 160: dq is off by"):
        throughput.check_backend(begin(tmp_path, throughput.TOY), throughput.TOY, CPU)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "sliding,mars"], "--only mars fits none of the configurations: parallel-4, "),
        ([], "--out is missing"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    out = ["--out", str(tmp_path / "card.json")] if arguments else []
    with pytest.raises(UserError, match=sentence):
        script("throughput").main(["--toy", "--device", "cpu", *out, *arguments])


def test_a_card_of_something_else_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text(json.dumps({"kind": "run"}))
    with pytest.raises(UserError, match="is a card of another kind: give --out another name"):
        begin(tmp_path, toy())
    path.write_text("{")
    with pytest.raises(UserError, match="is no card"):
        begin(tmp_path, toy())


@pytest.mark.parametrize("way", ["parallel", "sliding", "hard", "asleep"])
def test_counted_operations_are_those_of_the_model(way: str) -> None:
    """Without attention, whose dense mask on a CPU computes what a band leaves out, and without the update rule."""
    study, passes = toy(), 2 if way == "asleep" else 1
    counts, configuration = script("throughput_counts"), script("throughput_study").Configuration(way, 5, passes)
    trainer = script("throughput_measure").Trainer(study, CPU, compiled=False)
    with FlopCounterMode(display=False) as counter:
        trainer.gradients(configuration, script("throughput_measure").Setting(1, "none"))
    linear = {torch.ops.aten.mm, torch.ops.aten.addmm}
    found = sum(n for operation, n in counter.get_flop_counts()["Global"].items() if operation in linear)
    rule = sum(counts._rule_operations(study.model, p.tokens) for p in counts.passes_of(study, configuration))
    wanted = counts.counts(study, configuration, 1, "none").products - 3 * study.texts * rule
    assert wanted == pytest.approx(found, rel=0.01)


def test_the_model_is_the_papers() -> None:
    """1.4B parameters, six Jet layers without MLP, less than a tenth more."""
    study, counts = script("throughput_study"), script("throughput_counts")
    config = study.ouro()
    plain = config.model_copy(update={"layers": ("attn",) * config.layers.count("attn")})
    sizes, without = counts.sizes_of(config), counts.sizes_of(plain)
    assert (config.layers.count("attn"), config.layers.count("jet-only")) == (24, 6)
    assert without.all == pytest.approx(1.43e9, rel=0.01)
    assert 0.05 < sizes.all / without.all - 1 < 0.1


def test_predictions_hold_together() -> None:
    study, counts = script("throughput_study"), script("throughput_counts")
    real, at = study.Study(study.ouro("fla")), counts.Ceilings()
    for configuration in real.configurations():
        kept = [counts.counts(real, configuration, 1, kind) for kind in ("none", "pass", "window")]
        assert kept[0].model == kept[1].model == kept[2].model
        assert all(count.floor(at) < count.seconds(at) for count in kept)
        assert kept[0].seconds(at) < kept[1].seconds(at) <= kept[2].seconds(at)
        if configuration.way != "parallel":  # which is one pass over one window
            assert kept[0].memory > kept[1].memory >= kept[2].memory
    assert script("throughput_card").predictions(real, at).count("\n") == 3 + len(real.configurations())
