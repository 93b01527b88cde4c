"""Jet-Nemotron: its published checkpoints' keys and configs, and that pieces of a text are one call."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from reverie.errors import UserError
from reverie.hf.models.jet_nemotron import JetBlock, JetNemotronConfig, JetNemotronForCausalLM

# config.json where both sizes agree, but for token ids, which must fit the tiny vocabulary.
PUBLISHED: dict[str, Any] = {
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


def config_dict(layers: list[str], window: int, jet: dict[str, Any], **sizes: int) -> dict[str, Any]:
    jet = {"dconv_implementation": "triton", "mode": "chunk", "norm_eps": "1e-5", "conv_size": 4, **jet}
    attention = {"jet": {"dconv_generator_reduction": 8, **jet}, "swa": {"window_size": window}}
    layer = {"layer_types": layers, "num_hidden_layers": len(layers), "max_window_layers": len(layers)}
    return {**PUBLISHED, **layer, **sizes, "efficient_attention_config": attention}


SIZES_2B = {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "vocab_size": 151936}
SIZES_4B = {"hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16, "vocab_size": 151936}
LAYERS_2B = ["jet"] * 14 + ["attn"] + ["jet"] * 4 + ["attn", "swa", "swa"] + ["jet"] * 6
LAYERS_4B = [
    *["jet"] * 5,
    *["swa", *["jet"] * 10, "swa", "attn", "jet", "swa", "attn", "swa", "swa", "jet", "jet", "swa", "jet", "swa"],
    *[*["jet"] * 4, "attn", "jet", "jet", "jet"],
]
PUBLISHED_2B = config_dict(LAYERS_2B, 1152, {"expand_v": 2.6666666667, "head_dim": 96, "num_heads": 12}, **SIZES_2B)
PUBLISHED_4B = config_dict(LAYERS_4B, 2048, {"expand_v": 2, "head_dim": 128, "num_heads": 16}, **SIZES_4B)

# A tiny one: D 16, H 2, K 6, V 16, as many generator units as H V / 8.
LAYERS = ["jet", "swa", "attn", "jet"]
WINDOW, VOCABULARY = 5, 19
TINY = config_dict(
    LAYERS,
    WINDOW,
    {"expand_v": 2.6666666667, "head_dim": 6, "num_heads": 2},
    **{"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "vocab_size": VOCABULARY},
)
IN_EVERY_LAYER = {
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
SHAPES = {
    "model.embed_tokens.weight": (VOCABULARY, 16),
    "model.norm.weight": (16,),
    **{
        f"model.layers.{i}.{name}": shape
        for i, kind in enumerate(LAYERS)
        for name, shape in {**IN_EVERY_LAYER, **(IN_JET_BLOCK if kind == "jet" else IN_ATTENTION)}.items()
    },
}


def random_checkpoint() -> dict[str, Tensor]:
    """Tensors under which every part of the model matters."""
    random = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=random) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.5)
        + (1.0 if "norm" in name else 0.0)
        for name, shape in SHAPES.items()
    }


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub has it, without its Python files."""
    folder = tmp_path_factory.mktemp("snapshot")
    (folder / "config.json").write_text(json.dumps(TINY))
    save_file(random_checkpoint(), folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def model(snapshot: Path) -> JetNemotronForCausalLM:
    model = AutoModelForCausalLM.from_pretrained(snapshot)
    assert isinstance(model, JetNemotronForCausalLM)
    return model.eval()


@pytest.fixture
def tokens() -> Tensor:
    """[2, 13]: several sliding windows. None is 0, which generation takes for padding."""
    return torch.randint(1, VOCABULARY, (2, 13), generator=torch.Generator().manual_seed(1))


def test_keys_and_shapes_are_the_published_ones() -> None:
    model = JetNemotronForCausalLM(JetNemotronConfig.from_dict(TINY))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes.pop("lm_head.weight") == SHAPES["model.embed_tokens.weight"]  # tied: files do without it
    assert shapes == SHAPES


def test_a_snapshot_loads_without_its_code(snapshot: Path) -> None:
    loaded: Any = AutoModelForCausalLM.from_pretrained(snapshot, trust_remote_code=False, output_loading_info=True)
    model, info = loaded
    assert type(model) is JetNemotronForCausalLM
    assert not any(info.values()), info
    state = model.state_dict()
    for name, tensor in random_checkpoint().items():
        assert torch.equal(state[name], tensor), name
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()


def test_it_is_saved_as_it_was(snapshot: Path, model: JetNemotronForCausalLM, tokens: Tensor, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(SHAPES)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_the_config_names_layers_as_transformers_does(snapshot: Path) -> None:
    config = AutoConfig.from_pretrained(snapshot)
    assert config.layer_types == ["linear_attention", "sliding_attention", "full_attention", "linear_attention"]
    assert config.sliding_window == WINDOW
    assert config.rope_parameters["rope_theta"] == 1e6


@pytest.mark.parametrize("missing", ["jet", "swa"])
def test_layers_without_sizes_are_refused(missing: str) -> None:
    attention = {name: sizes for name, sizes in TINY["efficient_attention_config"].items() if name != missing}
    with pytest.raises(UserError, match=missing):
        JetNemotronConfig.from_dict({**TINY, "efficient_attention_config": attention})


@pytest.mark.parametrize(("published", "low", "high"), [(PUBLISHED_2B, 1.9e9, 2.1e9), (PUBLISHED_4B, 3.8e9, 4.1e9)])
def test_the_published_sizes(published: dict[str, Any], low: float, high: float) -> None:
    with torch.device("meta"):
        model = JetNemotronForCausalLM(JetNemotronConfig.from_dict(published))
    assert low < sum(parameter.numel() for parameter in model.parameters()) < high


@pytest.mark.parametrize("lengths", [[13], [6, 1, 2, 4], [3, 10], [1] * 13], ids=str)
def test_pieces_are_one_call(model: JetNemotronForCausalLM, tokens: Tensor, lengths: list[int]) -> None:
    cache, pieces = DynamicCache(config=model.config), []
    for piece in tokens.split(lengths, dim=1):
        pieces.append(model(piece, past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(pieces, 1), model(tokens, use_cache=False).logits, atol=1e-4, rtol=0)
    state = cache.get_recurrent_state(0)
    assert state is not None
    assert (state.dtype, state.shape) == (torch.float32, (2, 2, 6, 16))


def test_padding_on_the_left_changes_nothing(model: JetNemotronForCausalLM, tokens: Tensor) -> None:
    alone = model(tokens[:1, 4:]).logits
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    batch, cache = tokens.clone(), DynamicCache(config=model.config)
    batch[0, :4] = 3
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    first = model(batch[:, :8], mask[:, :8], positions[:, :8], cache).logits
    second = model(batch[:, 8:], mask, positions[:, 8:], cache).logits
    torch.testing.assert_close(torch.cat([first, second], 1)[:1, 4:], alone, atol=1e-4, rtol=0)


def jet_block_token_by_token(weights: dict[str, Tensor], x_TD: Tensor, H: int, taps: int, eps: float) -> Tensor:
    """One text, from the paper's formulas, in float64."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    x_TD = x_TD.double()
    values, outputs = x_TD @ w["v_proj.weight"].T, []
    S = None
    for t, x in enumerate(x_TD):
        generator = "dynamic_conv1d.kernel_generator."
        hidden = F.silu(w[f"{generator}w1.weight"] @ x)
        kernel = (w[f"{generator}w2.weight"] @ hidden + w[f"{generator}w2.bias"]).view(-1, taps)
        mixed = sum(kernel[:, taps - 1 - age] * values[t - age] for age in range(min(taps, t + 1)))
        assert isinstance(mixed, Tensor)
        v = F.silu(mixed).view(H, -1)
        q, k = (F.silu(w[f"{name}_proj.weight"] @ x).view(H, -1) for name in "qk")
        q, k = (y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt() for y in (q, k))
        decay = torch.exp(-w["A_log"].exp() * F.softplus(w["a_proj.weight"] @ x + w["dt_bias"]))
        beta = torch.sigmoid(w["b_proj.weight"] @ x)
        S = torch.zeros(H, k.shape[1], v.shape[1], dtype=torch.float64) if S is None else S
        S = decay[:, None, None] * S
        for h in range(H):
            S[h] += beta[h] * torch.outer(k[h], v[h] - S[h].T @ k[h])
        o = torch.stack([S[h].T @ q[h] for h in range(H)]) / math.sqrt(k.shape[1])
        o = o / (o.square().mean(-1, keepdim=True) + eps).sqrt() * w["o_norm.weight"]
        gate = (w["g_proj.weight"] @ x).view(H, -1)
        outputs.append(w["o_proj.weight"] @ (o * F.silu(gate)).flatten())
    return torch.stack(outputs)


def test_a_jet_block_is_what_the_paper_says(model: JetNemotronForCausalLM) -> None:
    block = model.model.layers[0].self_attn
    assert isinstance(block, JetBlock)
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(2))
    got, weights = block(x)
    assert weights is None
    for row in range(2):
        wanted = jet_block_token_by_token(block.state_dict(), x[row], H=2, taps=4, eps=1e-5)
        torch.testing.assert_close(got[row].double(), wanted, atol=1e-5, rtol=1e-4)


def test_sliding_attention_sees_its_window_and_no_more() -> None:
    attention = {"swa": {"window_size": 3}}
    layers = {"layer_types": ["swa"], "num_hidden_layers": 1, "efficient_attention_config": attention}
    model = JetNemotronForCausalLM(JetNemotronConfig.from_dict({**TINY, **layers})).eval()
    h = torch.randn(1, 8, 16, requires_grad=True)
    model(inputs_embeds=h).logits[0, -1].square().sum().backward()
    assert h.grad is not None
    assert h.grad[0].abs().sum(-1).bool().tolist() == [False] * 5 + [True] * 3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_parameter(model: JetNemotronForCausalLM, tokens: Tensor, checkpointing: bool) -> None:
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    model(tokens, labels=tokens).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A key's bias adds the same to all logits of a query, up to rotation.
        assert parameter.grad.abs().max() > 1e-8, name


def test_a_new_model_has_a_memory_that_forgets_slowly() -> None:
    block = JetNemotronForCausalLM(JetNemotronConfig.from_dict(TINY)).model.layers[0].self_attn
    assert isinstance(block, JetBlock)
    decay = torch.exp(-block.A_log.exp() * F.softplus(block.dt_bias))
    assert ((decay > 0.2) & (decay < 0.9991)).all()
    assert block.dynamic_conv1d.kernel_generator.w2.bias.std() > 0.3


def test_greedy_generation_is_argmax_of_full_calls(model: Any, tokens: Tensor) -> None:
    model.generation_config.eos_token_id = None
    got = model.generate(tokens, max_new_tokens=6, do_sample=False, pad_token_id=0)
    wanted = tokens
    for _ in range(6):
        wanted = torch.cat([wanted, model(wanted, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(got, wanted)
