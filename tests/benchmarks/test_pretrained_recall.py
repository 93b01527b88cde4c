"""What a pretrained model still knows, asleep and with its fast weights zeroed: on a tiny one."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from texts_apart import assert_texts_apart
from transformers import LlamaConfig, LlamaForCausalLM

from reverie.pretrained.config import PretrainedModelConfig
from reverie.recipe.build import build_model
from reverie.sleep import SleepConfig, rollout

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
bench: Any = importlib.import_module("pretrained_recall")

RECIPE = """
[task]
name = "depo"
max_nodes = 4
mini_vocab = 8
num_queries = 4
max_hops = 1
test_hops = [1]

[model]
pretrained = "{base}"
after = [1]

[sleep]
window_size = 20
num_sleep_passes = 2

[optim]
matrices = {{ name = "muon", lr = 1e-2 }}
rest = {{ name = "adamw", lr = 1e-3 }}

[train]
steps = 2
batch_size = 4
eval_every = 1
eval_examples = 8
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_card_and_a_figure(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, out = tmp_path / "tiny.toml", tmp_path / "card.json"
    recipe.write_text(RECIPE.format(base=base))
    arguments = [str(recipe), "--seeds", "0,1", "--runs", str(tmp_path / "runs"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["pretrained_recall.py", *arguments])
    bench.main()
    card = json.loads(out.read_text())
    assert out.with_suffix(".png").stat().st_size > 1000
    assert list(card["scores"]) == [bench.WITHIN, bench.CLEARED, bench.ZEROED, *map(bench.asleep, (1, 2, 4))]
    assert all(len(scores) == len(card["curves"]) == 2 for scores in card["scores"].values())
    trained = json.loads((tmp_path / "runs" / "seed-1" / "card.json").read_text())["score"]["loss"]
    assert card["scores"][bench.asleep(2)][1]["loss"] == pytest.approx(trained, abs=1e-3)
    bench.main()  # the runs are taken as they are
    assert json.loads(out.read_text())["scores"] == card["scores"]


def test_zeroed_fast_weights_hold_nothing_of_earlier_windows(base: Path) -> None:
    model = build_model(PretrainedModelConfig(vocab_size=32, pretrained=str(base), after=(1,)), 0)
    for name, p in model.named_parameters():
        if name.endswith("out_proj.weight"):
            torch.nn.init.normal_(p, std=0.5)
    tokens = torch.randint(32, (2, 24), generator=torch.Generator().manual_seed(1))
    other = torch.cat([tokens[:, :16].flip(1), tokens[:, 16:]], 1)
    mask = torch.zeros(2, 24, dtype=torch.bool)
    mask[:, 20:] = True
    config = SleepConfig(window_size=8, num_sleep_passes=2)
    with torch.no_grad():
        forgetful = [rollout(bench.Forgetful(model), x, mask, config)[0] for x in (tokens, other)]
        asleep = [rollout(model, x, mask, config)[0] for x in (tokens, other)]
    torch.testing.assert_close(*forgetful)
    assert (asleep[0] - asleep[1]).abs().max() > 1e-4


def test_the_results_page_has_the_card_s_numbers_and_its_figure_the_style_of_the_house() -> None:
    root = Path(__file__).parents[2]
    card = json.loads((root / "results" / "recall" / "smollm2.json").read_text())
    assert len(card["seeds"]) >= 3
    assert bench.table(card) in (root / "docs/results.md").read_text()
    drawing = bench.figure(card)
    assert_texts_apart(drawing)
    assert not any(axes.spines["top"].get_visible() for axes in drawing.axes)  # as in all figures
