"""Files that an earlier version wrote (`tests/old`, commit 3e94afd): they load, and mean what they meant.

`expected.json` has the logits of that version after the newest token, to five decimals, and the curve of the whole run.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Reverie, in_empty_folder, the_json
from tiny_recipe import write_tiny

from reverie import Context, Memory, SleepConfig, load_model, read

OLD = Path(__file__).parent / "old"
EXPECTED: dict[str, Any] = json.loads((OLD / "expected.json").read_text(encoding="utf-8"))
TOKENS = torch.arange(3, 34)


@pytest.fixture
def reverie(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Reverie:
    return in_empty_folder(monkeypatch, capsys, tmp_path)


def assert_expected(logits: torch.Tensor, name: str) -> None:
    torch.testing.assert_close(logits.double(), torch.tensor(EXPECTED[name], dtype=torch.float64), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_run_gives_the_same_logits_and_its_memory_too() -> None:
    model = load_model(OLD / "run")
    tokens = TOKENS.remainder(7)[None]
    logits, _ = read(model, tokens, Context.empty(model), model.sleep_config)
    assert_expected(logits[0, -1], "run")
    memory = Memory.load(OLD / "memory.safetensors", model)
    assert (memory.tokens.tolist(), len(memory.history.windows if memory.history else [])) == ([40], 3)
    logits, _ = read(model, torch.tensor([[1, 2, 3]]), memory.context, memory.config)
    assert_expected(logits[0, -1], "memory")


def test_a_run_goes_on_to_the_same_curve(reverie: Reverie, tmp_path: Path) -> None:
    shutil.copytree(OLD / "run", tmp_path / "run")
    passes = 'sleep.num_sleep_passes={distribution="uniform",mean=2,max=3}'
    settings = ["--set=train.depth_curriculum=0.5", f"--set={passes}"]
    done = reverie("train", write_tiny(tmp_path), *settings, "--out", "run", "--resume", "--json")
    curve = the_json(done)["curve"]
    assert [point["step"] for point in curve] == [3, 6]
    for point, expected in zip(curve, EXPECTED["whole_run_curve"], strict=True):
        for key in ("tokens", "depth", "train_loss", "gradient_norm"):
            assert point[key] == pytest.approx(expected[key], rel=1e-3)
        assert point["score"]["loss"] == pytest.approx(expected["score"]["loss"], rel=1e-3)


@pytest.mark.parametrize("run", ["run", "whole_run", "sharded_run"])
def test_runs_are_evaluated(reverie: Reverie, run: str) -> None:
    card = the_json(reverie("eval", OLD / run, "--json"))
    assert card["score"]["examples"] == 24
    if run != "run":
        expected = json.loads((OLD / run / "card.json").read_text(encoding="utf-8"))["score"]["loss"]
        assert card["score"]["loss"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("run", ["whole_run", "sharded_run"])
def test_cards_are_drawn(reverie: Reverie, run: str, tmp_path: Path) -> None:
    shutil.copy(OLD / run / "card.json", tmp_path / "card.json")
    assert reverie("plot", "card.json").code == 0
    assert (tmp_path / "card.png").stat().st_size > 10_000


@pytest.mark.hf
@pytest.mark.parametrize("kind", ["adapter", "whole"])
@torch.no_grad()
def test_folders_of_transformers_load(kind: str) -> None:
    from reverie.hf import cache_of, load

    model: Any = load(OLD / kind, base=OLD / "base" if kind == "adapter" else None)
    assert model.sleep_config == SleepConfig(window_size=8, num_sleep_passes=2, looped_blocks=(0, 2))
    assert_expected(model(TOKENS[None]).logits[0, -1], kind)
    if kind == "whole":
        memory = Memory.load(OLD / "hf_memory.safetensors", model)
        assert_expected(model(torch.tensor([[5, 6, 7]]), past_key_values=cache_of(memory)).logits[0, -1], "hf_memory")


@pytest.mark.hf
@torch.no_grad()
def test_a_hybrid_as_a_folder_of_transformers_loads() -> None:
    from reverie.hf import load_hybrid

    model, sleep = load_hybrid(OLD / "hybrid")
    logits, _ = read(model, TOKENS.remainder(7)[None], Context.empty(model), sleep)
    assert_expected(logits[0, -1], "run")
