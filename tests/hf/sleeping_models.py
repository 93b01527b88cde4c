"""Tiny models that sleep, for tests."""

from __future__ import annotations

from typing import Any

import torch
from tiny import CONFIGS, tiny
from transformers import PreTrainedModel

from reverie.hf import ReverieHybridForCausalLM
from reverie.hf.add import add_sleep, insert_fast_weights
from reverie.model import HybridConfig, new_model
from reverie.sleep import SleepConfig

L = 8
TRANSFORMERS = ["llama", "qwen2", "qwen3", "ouro"]
OWN = "reverie_hybrid"  # a `HybridLM` in a model of transformers
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


def own(config: SleepConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> ReverieHybridForCausalLM:
    """A hybrid of ours, in which every part matters."""
    sizes = {"vocab_size": 61, "width": 8, "mlp_width": 12, "num_heads": 2, "fast_heads": 2, "key_size": 3}
    layers = ("attn", "gdn", "attn", "jet")
    lm = new_model(HybridConfig.model_validate({**sizes, "value_size": 5, "layers": layers}), seed)
    torch.manual_seed(seed)
    for parameter in lm.parameters():
        parameter.data.add_(0.4 * torch.randn(parameter.shape))
    return ReverieHybridForCausalLM.from_lm(lm.to(dtype).eval(), config)


def sleeping(kind: str, config: SleepConfig, **changes: Any) -> Any:
    """A model that sleeps, with fast weights that do something."""
    if kind == OWN:
        return own(config, **changes)
    model = insert(kind, tiny(kind, **changes))
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if kind in TRANSFORMERS and name.endswith("out_proj.weight"):
            torch.nn.init.normal_(parameter, std=0.3)
    return add_sleep(model, config)
