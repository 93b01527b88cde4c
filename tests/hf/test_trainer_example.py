"""The example with transformers' Trainer, on a tiny model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny
from tiny_folder import tiny_tokenizer

from reverie.hf import SleepConfig, add_sleep, freeze_pretrained, insert_fast_weights, load
from reverie.hf.bases import load_base, load_tokenizer
from reverie.tasks import Depo

pytestmark = pytest.mark.hf


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location(
        "hf_trainer", Path(__file__).parents[2] / "examples" / "hf_trainer.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hf_trainer"] = module
    spec.loader.exec_module(module)
    return module


def test_trainer_trains_what_was_inserted_and_saves_an_adapter(example: Any, tmp_path: Path) -> None:
    task = Depo(max_nodes=4, mini_vocab=8, num_queries=4, max_hops=1, test_hops=(1,))
    base = tmp_path / "base"
    tiny("llama", dtype=torch.float32).save_pretrained(base)
    model = load_base(base)
    insert_fast_weights(model, [1, 2], "gdn")
    add_sleep(model, SleepConfig(window_size=16, num_sleep_passes=2))
    freeze_pretrained(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tokenizer = tiny_tokenizer()
    losses = example.fine_tune(
        model, tokenizer, example.Texts(task, 4), 10, tmp_path / "out"
    )  # the same four texts each time
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("fast_weight_mixer" in name for name in moved)
    tokens = example.Texts(task, 1)[0]["input_ids"][None]
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "out")(tokens).logits, model.eval()(tokens).logits)
    assert load_tokenizer(tmp_path / "out")("Rain").input_ids == tokenizer("Rain").input_ids
    assert (tmp_path / "out" / "README.md").exists()
    assert (tmp_path / "out" / "model.safetensors").stat().st_size < (base / "model.safetensors").stat().st_size


def test_labels_stand_under_the_tokens_that_they_are(example: Any) -> None:
    task = Depo(max_nodes=4, mini_vocab=8, num_queries=4, max_hops=2, test_hops=(1,))
    item, batch = example.Texts(task, 3)[2], task.batch("train", 0, 0, range(2, 3))
    labelled = item["labels"] != -100
    assert labelled.sum() == batch.loss_mask.sum()
    assert torch.equal(item["labels"][labelled], batch.targets[batch.loss_mask])
    assert torch.equal(labelled[1:], batch.loss_mask[0, :-1])
