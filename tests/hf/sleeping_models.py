"""Tiny models that sleep, for tests."""

from __future__ import annotations

from typing import Any

import torch
from tiny import CONFIGS, tiny
from transformers import PreTrainedModel

from reverie.hf.add import add_sleep, insert_fast_weights
from reverie.sleep import SleepConfig

L = 8
TRANSFORMERS = ["llama", "qwen2", "qwen3", "ouro"]
HYBRIDS = [kind for kind in CONFIGS if kind not in TRANSFORMERS]


def asleep(N: int = 1, eviction: str = "hard", loop: tuple[int, int] | None = None) -> SleepConfig:
    return SleepConfig.model_validate(
        {"window_size": L, "num_sleep_passes": N, "eviction": eviction, "looped_blocks": loop}
    )


def insert(kind: str, model: PreTrainedModel) -> PreTrainedModel:
    """Fast weights for a type that has none: fresh ones, which do nothing yet."""
    if kind in TRANSFORMERS:
        insert_fast_weights(model, [0, 2], "jet" if kind == "llama" else "gdn")
    return model


def sleeping(kind: str, config: SleepConfig, **changes: Any) -> PreTrainedModel:
    """With fast weights that do something."""
    model = insert(kind, tiny(kind, **changes))
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if kind in TRANSFORMERS and name.endswith("out_proj.weight"):
            torch.nn.init.normal_(parameter, std=0.3)
    return add_sleep(model, config)
