"""A tiny model with adapters of peft, and a question about a text that it slept over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sleeping_models import L, asleep, sleeping
from tiny import text
from torch import Tensor, nn

peft: Any = pytest.importorskip("peft")

BOOK, QUESTION = text(L + 3, batch=1), text(5, batch=1, seed=2)


def lora(**settings: Any) -> Any:
    """The config of an adapter that is not zero at first."""
    targets = ["q_proj", "up_proj"]
    return peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False, **settings)


def adapted() -> Any:
    """A model with two adapters, in evaluation mode."""
    model = peft.get_peft_model(sleeping("llama", asleep(1), dtype=torch.float32, num_hidden_layers=3), lora(), "one")
    model.add_adapter("two", lora())
    for name, x in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(x, std=0.5)
    return model.eval()


def answer(model: Any, cache: Any) -> Tensor:
    """The logits of the question, after what a cache holds."""
    return model(input_ids=QUESTION, past_key_values=cache).logits


def weight(model: Any, name: str = "up_proj.base_layer.weight") -> nn.Parameter:
    """The first parameter whose name ends so."""
    return next(x for key, x in model.named_parameters() if key.endswith(name))
