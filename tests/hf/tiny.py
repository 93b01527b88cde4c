"""Tiny random models of transformers' types, with the sizes that a test wants."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import reverie.hf  # noqa: F401  # which makes jet_nemotron and ouro known

BASE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
ALTERNATING = ["linear_attention", "full_attention"] * 2
DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ALTERNATING,
}
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
NO_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3_next": DELTA | NO_EXPERTS | {"head_dim": 8, "shared_expert_intermediate_size": 16},
    "qwen3_5_text": DELTA | {"head_dim": 8},
    "olmo_hybrid": DELTA,
    "kimi_linear": {
        "layer_types": ALTERNATING,
        "mlp_layer_types": ["dense"] * 4,
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
    },
    "bamba": MAMBA | {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": MAMBA
    | {
        "layer_types": ["mamba", "attention"] * 2,
        "num_local_experts": 0,
        "shared_intermediate_size": 48,
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
    },
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64, "head_dim": 8, "embedding_multiplier": 2.0},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "mlp", "mamba", "attention"],
        "num_hidden_layers": 5,
        "head_dim": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
        "time_step_min": 1e-9,  # transformers applies it to many tokens, and not to a single one
    },
    "jet_nemotron": {
        "layer_types": ["jet", "attn", "jet", "swa"],
        "efficient_attention_config": {
            "jet": {"expand_v": 2.0, "head_dim": 8, "num_heads": 4, "conv_size": 4, "dconv_generator_reduction": 8}
            | {"dconv_implementation": "triton", "mode": "chunk", "norm_eps": 1e-5},
            "swa": {"window_size": 5},
        },
    },
    "ouro": {"total_ut_steps": 1, "head_dim": 8, "num_key_value_heads": 4, "early_exit_threshold": 1.0},
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
}


def tiny(kind: str, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> PreTrainedModel:
    """A random model in evaluation mode, with weights large enough that every part of it matters."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **(BASE | CONFIGS.get(kind, {}) | changes))
    model = (
        AutoModelForCausalLM.from_config(config, dtype=torch.float32, experts_implementation="eager").eval().to(dtype)
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def text(T: int, batch: int = 2, seed: int = 1, vocab_size: int = 61) -> torch.Tensor:
    """Tokens [batch, T], none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocab_size, (batch, T), generator=generator)
