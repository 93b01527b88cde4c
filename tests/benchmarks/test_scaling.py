"""Formulas of scaling against counts on small models, the paper part's promises, and what docs/SCALING.md shows."""

from __future__ import annotations

import gc
import importlib
import json
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.run import get_args_parser

from reverie.bench import account
from reverie.bench.account import Work
from reverie.bench.count import LiveBytes, count_flops, flop_counter
from reverie.model import HybridConfig, HybridLM, LanguageModel, State, new_model
from reverie.recipe import OptimConfig, OptimizerConfig
from reverie.sleep import SleepConfig, rollout
from reverie.sleep.gradients import Backward
from reverie.train import optim
from reverie.train.optim import build_optimizers

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
benchmark: Any = importlib.import_module("scaling")

PAGE = (ROOT / "docs" / "SCALING.md").read_text(encoding="utf-8")
CARD = json.loads((ROOT / "results" / "scaling.json").read_text(encoding="utf-8"))


def small(
    layers: tuple[str, ...] = ("attn", "gdn", "attn", "gdn"),
    labelled: str = "---x",
    window: int = 128,
    passes: int = 3,
    looped: tuple[int, int] | None = None,
    **backward: Any,
) -> Work:
    """Two texts through a model of width 48; "-" is a window asleep, "x" one with 8 labels a text."""
    sizes = {"vocab_size": 96, "width": 48, "mlp_width": 128, "num_heads": 4, "num_kv_heads": 2}
    model = HybridConfig.model_validate({**sizes, "layers": layers, "fast_heads": 3, "key_size": 12, "value_size": 24})
    sleep = SleepConfig(window_size=window, num_sleep_passes=passes, looped_blocks=looped)
    windows = tuple(mark == "x" for mark in labelled)
    return Work(model, sleep, Backward.model_validate(backward), 2, windows, 16 * sum(windows))


CASES = {
    "N = 1": small(passes=1),
    "N = 3": small(),
    "N = 3, L = 64": small(window=64),
    "N = 4, blocks 0 and 1 looped": small(passes=4, looped=(0, 2)),
    "N = 3, labels in windows 1 and 3": small(labelled="-x-x"),
    "gdn and jet, blocks 1 to 3 looped": small(("gdn", "attn", "attn", "jet", "attn"), looped=(1, 4)),
    "transformer": small(("attn",) * 4, labelled="-xxx"),
    "pass, N = 4, labels in windows 1 and 3": small(passes=4, labelled="-x-x", activation_checkpoint="pass"),
    "pass, blocks 1 and 2 looped": small(looped=(1, 3), activation_checkpoint="pass"),
    "window, jet, N = 2": small(("attn", "jet", "attn", "jet"), passes=2, activation_checkpoint="window"),
    "window, N = 4, blocks 0 and 1 looped": small(passes=4, looped=(0, 2), activation_checkpoint="window"),
    "last 2 of 4 passes": small(passes=4, bptt_passes=2),
    "labels reach 1 window": small(bptt_windows=1),
}


def batch_of(work: Work) -> tuple[Tensor, Tensor]:
    """Tokens and loss mask: the labels stand at the end of labelled windows, the same number in each."""
    random, L = torch.Generator().manual_seed(0), work.sleep.window_size
    length = work.tokens or L * len(work.labelled)
    tokens = torch.randint(work.model.vocab_size, (work.batch, length), generator=random)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    each = work.scored // (work.batch * sum(work.labelled))
    for window, labelled in enumerate(work.labelled):
        end = window * L + work.length(window)
        mask[:, end - each : end] = labelled
    return tokens, mask


def loss_of(work: Work, model: LanguageModel) -> Tensor:
    tokens, mask = batch_of(work)
    logits, _ = rollout(model, tokens, mask, work.sleep, backward=work.backward)
    return F.cross_entropy(logits.float(), tokens[mask])


def operations(work: Work) -> tuple[int, int]:
    """Operations of the forward, and of the backward with what it makes again."""
    model, counter = new_model(work.model, 0), flop_counter()
    with counter:
        loss = loss_of(work, model)
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops() - forward


def live_bytes(work: Work, dtype: torch.dtype | None = None) -> tuple[int, int]:
    """Bytes alive between forward and backward, casts of parameters left out, and the most alive in the backward."""
    model = new_model(work.model, 0)
    loss_of(work, model)  # rotary tables are made once
    with LiveBytes() as live:
        with nullcontext() if dtype is None else torch.autocast("cpu", dtype):
            loss = loss_of(work, model)
        gc.collect()
        kept = live.bytes
        live.peak = 0
        loss.backward()
    casts = 0 if dtype is None else sum(p.numel() * dtype.itemsize for p in model.parameters() if p.ndim == 2)
    return kept - casts, live.peak


SAMPLE = ("N = 3", "window, jet, N = 2", "pass, blocks 1 and 2 looped", "window, N = 4, blocks 0 and 1 looped")


class Recorder(HybridLM):
    """Notes which blocks are run, and does nothing."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self.made: list[tuple[int, int, bool]] = []

    def blocks(
        self, h: Tensor, state: State, start: int, stop: int, *, span: int, output: bool = True, **_: Any
    ) -> tuple[Tensor, State]:
        self.made.append((start, stop, output))
        return h, state


@pytest.mark.parametrize("layers", [("attn", "gdn", "attn", "gdn"), ("gdn", "attn", "attn"), ("attn", "attn")])
@pytest.mark.parametrize("passes", [1, 2, 4])
@pytest.mark.parametrize("looped", [None, (0, 1), (1, 2)])
def test_runs_are_those_of_rollout(layers: tuple[str, ...], passes: int, looped: tuple[int, int] | None) -> None:
    work = small(layers, "-x--x", window=4, passes=passes, looped=looped)._replace(scored=4)
    model = Recorder(work.model)
    tokens, mask = batch_of(work)
    rollout(model, tokens, mask, work.sleep)
    made = [run for run in model.made if run[0] < run[1]]
    assert [(run.start, run.stop, run.output) for run in account.runs(work)] == made


@pytest.mark.parametrize("kind", ["attn", "gdn", "jet"])
def test_what_muon_costs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: in float32 on a CPU wide matrices take fewer products."""
    monkeypatch.setattr(optim, "WIDE", float("inf"))
    work = small((kind, "attn"))
    model = new_model(work.model, 0)
    matrices, rest = (OptimizerConfig(name=name, lr=1e-3) for name in ("muon", "adamw"))
    muon, _ = build_optimizers(model, OptimConfig(matrices=matrices, rest=rest))
    loss_of(work, model).backward()
    assert account.muon_operations(work.model) == count_flops(muon.step)


@pytest.mark.parametrize("name", ["1.4B", "8B"])
def test_parameters_are_those_of_the_docs(name: str) -> None:
    """Attention 2D² + 2D·Hkv·d, MLP 3DM, Gated DeltaNet D·H(2K + 3V + 2), and twice vocabulary × D."""
    model, _ = benchmark.MODELS[name]
    D, H, K, V = model.width, model.fast_heads, model.key_size, model.value_size
    mixers = {"attn": 2 * D * D + 2 * D * model.kv_heads * model.head_size, "gdn": D * H * (2 * K + 3 * V + 2)}
    matrices = sum(mixers[kind] + 3 * D * model.mlp_width for kind in model.layers)
    shapes = account.parameter_shapes(model)
    assert account.count(account.hidden_matrices(model)) == matrices
    vectors = sum(max(shape) for shape in shapes.values() if len(shape) == 1 or min(shape) <= 4)
    assert 0 <= account.count(shapes) - matrices - 2 * model.vocab_size * D <= 4 * vectors


@pytest.mark.parametrize("case", [*SAMPLE, "last 2 of 4 passes"])
def test_operations(case: str) -> None:
    work = CASES[case]
    forward, backward = operations(work)
    expected = account.operations(work)
    assert expected.forward == pytest.approx(forward, rel=0.02)
    assert expected.backward + expected.recompute == pytest.approx(backward, rel=0.02)


def test_a_last_window_that_is_shorter_and_layers_without_mlp() -> None:
    work = small(("attn", "jet-only", "gdn"), "--x", window=75, passes=2)._replace(tokens=190)
    assert [work.length(window) for window in range(3)] == [75, 75, 40]
    for mode in ("none", "pass", "window"):
        again = work._replace(backward=work.backward.model_copy(update={"activation_checkpoint": mode}))
        forward, backward = operations(again)
        expected = account.operations(again)
        assert expected.forward == pytest.approx(forward, rel=0.02)
        assert expected.backward + expected.recompute == pytest.approx(backward, rel=0.02)
        kept, peak = live_bytes(again)
        assert account.kept_bytes(again) == pytest.approx(kept, rel=0.03)
        # Filling up chunks takes copies for a moment, which the formula leaves out.
        assert account.peak_bytes(again) == pytest.approx(peak, rel=0.12)


@pytest.mark.parametrize("case", SAMPLE)
def test_bytes(case: str) -> None:
    work = CASES[case]
    kept, peak = live_bytes(work)
    assert account.kept_bytes(work) == pytest.approx(kept, rel=0.03)
    assert account.peak_bytes(work) == pytest.approx(peak, rel=0.05)


def test_bytes_of_autocast() -> None:
    """Bytes that runs keep under bfloat16 autocast, in shares of float32's: what the large models take for granted."""
    sizes = {"vocab_size": 64, "width": 256, "mlp_width": 896, "num_heads": 8, "num_kv_heads": 2}
    layers = ("attn", "attn", "attn", "gdn")
    model = HybridConfig.model_validate({**sizes, "layers": layers, "fast_heads": 3, "key_size": 64, "value_size": 128})
    work = Work(model, SleepConfig(window_size=256, num_sleep_passes=2), Backward(), 1, (False, True), 16)
    half, full = (live_bytes(work, dtype)[0] for dtype in (torch.bfloat16, None))
    assert half / full == pytest.approx(benchmark.AUTOCAST_SHARE, rel=0.05)


@pytest.mark.parametrize("name", ["1.4B", "8B", "70B"])
def test_the_large_models_have_the_size_of_their_names(name: str) -> None:
    model, _ = benchmark.MODELS[name]
    assert account.count(account.parameter_shapes(model)) == pytest.approx(float(name[:-1]) * 1e9, rel=0.1)


def test_the_docs_show_the_card_in_results() -> None:
    assert benchmark.table(CARD) in PAGE
    assert CARD["paper"]["texts"] == json.loads(json.dumps({name: benchmark.text(name) for name in benchmark.MODELS}))


def test_the_docs_launch_with_options_that_there_are() -> None:
    text = re.sub(r"\\\n *", "", PAGE)
    lines = [line[line.index("torchrun --") :] for line in text.splitlines() if "torchrun --" in line]
    assert len(lines) == 3
    for line in lines:
        words = line.replace('"$SLURM_NNODES"', "4").split()
        options = get_args_parser().parse_args(words[1:])
        assert (options.module, options.training_script) == (True, "reverie.train")


STAND_IN = """#!/bin/bash
echo "$(basename "$0") $*" >> calls
case "$(basename "$0")" in
scontrol) [ "$1" != show ] || echo node1 ;;
srun) trap 'sleep 0.2; touch runs/saved; exit 143' TERM; echo > started; while :; do sleep 0.05; done ;;
esac
"""


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_slurm_script_saves_and_queues_itself_again(tmp_path: Path, checkpoint: bool) -> None:
    [script] = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    for name in ("srun", "scontrol"):
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)
    out = tmp_path / "runs" / "gsm_infinite" / "paper"
    out.mkdir(parents=True)
    if checkpoint:
        (out / "checkpoint-000000100").mkdir()
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_NNODES": "4"}
    job = subprocess.Popen(["bash", "-c", script], cwd=tmp_path, env=environment | {"SLURM_JOB_NODELIST": "node[1-4]"})
    deadline = time.monotonic() + 10
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    job.wait(timeout=10)
    assert (tmp_path / "runs" / "saved").exists()  # it waited for training to save
    shown, started, requeued = (tmp_path / "calls").read_text().splitlines()
    assert shown == "scontrol show hostnames node[1-4]"
    assert "--rdzv-endpoint node1:29500" in started
    assert started.endswith("--resume") == checkpoint
    assert requeued == "scontrol requeue 7"
