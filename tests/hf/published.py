"""Jet-Nemotron and Ouro as they are published: configs, names and shapes; tiny ones with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Jet-Nemotron

# config.json where both sizes agree, but for token ids, which must fit the tiny vocabulary.
JET_PUBLISHED: dict[str, Any] = {
    "architectures": ["JetNemotronForCausalLM"],
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_jet_nemotron.JetNemotronConfig",
        "AutoModelForCausalLM": "modeling_jet_nemotron.JetNemotronForCausalLM",
    },
    "bos_token_id": 1,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 131072,
    "model_type": "jet_nemotron",
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "transformers_version": "4.51.3",
    "use_cache": True,
    "use_mrope": False,
}


def jet_config(layers: list[str], window: int, jet: dict[str, Any], **sizes: int) -> dict[str, Any]:
    jet = {"dconv_implementation": "triton", "mode": "chunk", "norm_eps": "1e-5", "conv_size": 4, **jet}
    attention = {"jet": {"dconv_generator_reduction": 8, **jet}, "swa": {"window_size": window}}
    layer = {"layer_types": layers, "num_hidden_layers": len(layers), "max_window_layers": len(layers)}
    return {**JET_PUBLISHED, **layer, **sizes, "efficient_attention_config": attention}


SIZES_2B = {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "vocab_size": 151936}
SIZES_4B = {"hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16, "vocab_size": 151936}
LAYERS_2B = ["jet"] * 14 + ["attn"] + ["jet"] * 4 + ["attn", "swa", "swa"] + ["jet"] * 6
LAYERS_4B = [
    *["jet"] * 5,
    *["swa", *["jet"] * 10, "swa", "attn", "jet", "swa", "attn", "swa", "swa", "jet", "jet", "swa", "jet", "swa"],
    *[*["jet"] * 4, "attn", "jet", "jet", "jet"],
]
JET_2B = jet_config(LAYERS_2B, 1152, {"expand_v": 2.6666666667, "head_dim": 96, "num_heads": 12}, **SIZES_2B)
JET_4B = jet_config(LAYERS_4B, 2048, {"expand_v": 2, "head_dim": 128, "num_heads": 16}, **SIZES_4B)

# A tiny one: D 16, H 2, K 6, V 16, as many generator units as H V / 8.
JET_LAYERS = ["jet", "swa", "attn", "jet"]
WINDOW, VOCABULARY = 5, 19
JET = jet_config(
    JET_LAYERS,
    WINDOW,
    {"expand_v": 2.6666666667, "head_dim": 6, "num_heads": 2},
    **{"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "vocab_size": VOCABULARY},
)
JET_IN_EVERY_LAYER = {
    "input_layernorm.weight": (16,),
    "post_attention_layernorm.weight": (16,),
    "mlp.gate_proj.weight": (24, 16),
    "mlp.up_proj.weight": (24, 16),
    "mlp.down_proj.weight": (16, 24),
}
IN_ATTENTION = {
    "self_attn.q_proj.weight": (16, 16),
    "self_attn.q_proj.bias": (16,),
    "self_attn.k_proj.weight": (8, 16),
    "self_attn.k_proj.bias": (8,),
    "self_attn.v_proj.weight": (8, 16),
    "self_attn.v_proj.bias": (8,),
    "self_attn.o_proj.weight": (16, 16),
}
IN_JET_BLOCK = {
    "self_attn.A_log": (2,),
    "self_attn.dt_bias": (2,),
    "self_attn.q_proj.weight": (12, 16),
    "self_attn.k_proj.weight": (12, 16),
    "self_attn.v_proj.weight": (32, 16),
    "self_attn.a_proj.weight": (2, 16),
    "self_attn.b_proj.weight": (2, 16),
    "self_attn.g_proj.weight": (32, 16),
    "self_attn.o_proj.weight": (16, 32),
    "self_attn.o_norm.weight": (16,),
    "self_attn.dynamic_conv1d.kernel_generator.w1.weight": (4, 16),
    "self_attn.dynamic_conv1d.kernel_generator.w2.weight": (128, 4),
    "self_attn.dynamic_conv1d.kernel_generator.w2.bias": (128,),
}
JET_SHAPES = {
    "model.embed_tokens.weight": (VOCABULARY, 16),
    "model.norm.weight": (16,),
    **{
        f"model.layers.{i}.{name}": shape
        for i, kind in enumerate(JET_LAYERS)
        for name, shape in {**JET_IN_EVERY_LAYER, **(IN_JET_BLOCK if kind == "jet" else IN_ATTENTION)}.items()
    },
}


# Ouro


def ouro_config(layers: int, **changes: Any) -> dict[str, Any]:
    """config.json as it is published."""
    return {
        "architectures": ["OuroForCausalLM"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_ouro.OuroConfig",
            "AutoModel": "modeling_ouro.OuroModel",
            "AutoModelForCausalLM": "modeling_ouro.OuroForCausalLM",
        },
        "bos_token_id": 0,
        "early_exit_threshold": 1.0,
        "eos_token_id": 0,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 5632,
        "layer_types": ["full_attention"] * layers,
        "max_position_embeddings": 65536,
        "max_window_layers": layers,
        "model_type": "ouro",
        "num_attention_heads": 16,
        "num_hidden_layers": layers,
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "total_ut_steps": 4,
        "transformers_version": "4.55.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 49152,
        **changes,
    }


OURO_LAYERS, OURO_STEPS, OURO_HEADS = 2, 3, 2
OURO = ouro_config(
    OURO_LAYERS,
    total_ut_steps=OURO_STEPS,
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=OURO_HEADS,
    num_key_value_heads=OURO_HEADS,
    head_dim=8,
    vocab_size=VOCABULARY,
)
OURO_IN_EVERY_LAYER = {
    "input_layernorm.weight": (16,),
    "input_layernorm_2.weight": (16,),
    "post_attention_layernorm.weight": (16,),
    "post_attention_layernorm_2.weight": (16,),
    "self_attn.q_proj.weight": (16, 16),
    "self_attn.k_proj.weight": (16, 16),
    "self_attn.v_proj.weight": (16, 16),
    "self_attn.o_proj.weight": (16, 16),
    "mlp.gate_proj.weight": (24, 16),
    "mlp.up_proj.weight": (24, 16),
    "mlp.down_proj.weight": (16, 24),
}
OURO_SHAPES = {
    "model.embed_tokens.weight": (VOCABULARY, 16),
    "model.norm.weight": (16,),
    "model.early_exit_gate.weight": (1, 16),
    "model.early_exit_gate.bias": (1,),
    "lm_head.weight": (VOCABULARY, 16),
    **{f"model.layers.{i}.{name}": shape for i in range(OURO_LAYERS) for name, shape in OURO_IN_EVERY_LAYER.items()},
}


def random_checkpoint(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors under which every part of a model matters."""
    random = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=random) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.5)
        + (1.0 if "norm" in name else 0.0)
        for name, shape in shapes.items()
    }
