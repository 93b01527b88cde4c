"""Ouro: its published checkpoints' keys and configs, its loop, and that pieces of a text are one call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from reverie.errors import UserError
from reverie.hf.models.ouro import OuroConfig, OuroForCausalLM


def config_dict(layers: int, **changes: Any) -> dict[str, Any]:
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


LAYERS, STEPS, HEADS, VOCABULARY = 2, 3, 2, 19
TINY = config_dict(
    LAYERS,
    total_ut_steps=STEPS,
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=HEADS,
    num_key_value_heads=HEADS,
    head_dim=8,
    vocab_size=VOCABULARY,
)
IN_EVERY_LAYER = {
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
SHAPES = {
    "model.embed_tokens.weight": (VOCABULARY, 16),
    "model.norm.weight": (16,),
    "model.early_exit_gate.weight": (1, 16),
    "model.early_exit_gate.bias": (1,),
    "lm_head.weight": (VOCABULARY, 16),
    **{f"model.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in IN_EVERY_LAYER.items()},
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
def model(snapshot: Path) -> OuroForCausalLM:
    model = AutoModelForCausalLM.from_pretrained(snapshot)
    assert isinstance(model, OuroForCausalLM)
    return model.eval()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(1, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))


def test_keys_and_shapes_are_the_published_ones() -> None:
    model = OuroForCausalLM(OuroConfig.from_dict(TINY))
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == SHAPES


def test_a_snapshot_loads_without_its_code(snapshot: Path, tmp_path: Path) -> None:
    loaded: Any = AutoModelForCausalLM.from_pretrained(snapshot, trust_remote_code=False, output_loading_info=True)
    model, info = loaded
    assert type(model) is OuroForCausalLM
    assert not any(info.values()), info
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    for name, tensor in random_checkpoint().items():
        assert torch.equal(model.state_dict()[name], tensor), name
        assert torch.equal(again[name], tensor), name


def test_an_early_exit_is_refused() -> None:
    with pytest.raises(UserError, match="early_exit_threshold"):
        OuroConfig.from_dict({**TINY, "early_exit_threshold": 0.5})


@pytest.mark.parametrize(("layers", "parameters"), [(24, 1_434_652_673), (48, 2_667_974_657)])
def test_the_published_sizes(layers: int, parameters: int) -> None:
    with torch.device("meta"):
        model = OuroForCausalLM(OuroConfig.from_dict(config_dict(layers)))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def looped_logits(weights: dict[str, Tensor], tokens_T: Tensor, steps: int) -> Tensor:
    """One text through the published architecture, in float64."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    T = len(tokens_T)

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]

    def rotate(x_HTd: Tensor) -> Tensor:
        half = x_HTd.shape[-1] // 2
        angle = torch.arange(T)[:, None] * 1e6 ** (-torch.arange(half, dtype=torch.float64) / half)
        pairs = torch.complex(x_HTd[..., :half], x_HTd[..., half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    def attend(x: Tensor, name: str) -> Tensor:
        q, k, v = (
            (x @ w[f"{name}.{which}_proj.weight"].T).unflatten(-1, (HEADS, -1)).transpose(0, 1) for which in "qkv"
        )
        scores = rotate(q) @ rotate(k).transpose(1, 2) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1) @ w[f"{name}.o_proj.weight"].T

    def mlp(x: Tensor, name: str) -> Tensor:
        gate, up = (x @ w[f"{name}.{which}_proj.weight"].T for which in ("gate", "up"))
        return (F.silu(gate) * up) @ w[f"{name}.down_proj.weight"].T

    h = w["model.embed_tokens.weight"][tokens_T]
    for _ in range(steps):
        for i in range(LAYERS):
            layer = f"model.layers.{i}"
            y = attend(norm(h, f"{layer}.input_layernorm"), f"{layer}.self_attn")
            h = h + norm(y, f"{layer}.input_layernorm_2")
            y = mlp(norm(h, f"{layer}.post_attention_layernorm"), f"{layer}.mlp")
            h = h + norm(y, f"{layer}.post_attention_layernorm_2")
        h = norm(h, "model.norm")
    return h @ w["lm_head.weight"].T


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_stack_runs_as_often_as_the_config_says(model: OuroForCausalLM, tokens: Tensor, steps: int) -> None:
    model.config.total_ut_steps = steps
    for row, got in enumerate(model(tokens).logits):
        wanted = looped_logits(random_checkpoint(), tokens[row], steps)
        torch.testing.assert_close(got.double(), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, STEPS])
@pytest.mark.parametrize("lengths", [[9], [4, 1, 2, 2], [1] * 9], ids=str)
def test_pieces_are_one_call(model: OuroForCausalLM, tokens: Tensor, lengths: list[int], steps: int) -> None:
    model.config.total_ut_steps = steps
    cache, pieces = DynamicCache(config=model.config), []
    for piece in tokens.split(lengths, dim=1):
        pieces.append(model(piece, past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(pieces, 1), model(tokens, use_cache=False).logits, atol=1e-4, rtol=0)
    assert [cache.get_seq_length(i) for i in range(len(cache))] == [9] * (steps * LAYERS)


def test_padding_on_the_left_changes_nothing(model: OuroForCausalLM, tokens: Tensor) -> None:
    alone = model(tokens[:1, 3:]).logits
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    batch = model(tokens, mask, (mask.cumsum(1) - 1).clamp(min=0)).logits
    torch.testing.assert_close(batch[:1, 3:], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_all_but_the_gate(model: OuroForCausalLM, tokens: Tensor, checkpointing: bool) -> None:
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    model(tokens, labels=tokens).loss.backward()
    for name, parameter in model.named_parameters():
        if "early_exit_gate" in name:
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 1e-8, name


def test_greedy_generation_is_argmax_of_full_calls(model: Any, tokens: Tensor) -> None:
    model.generation_config.eos_token_id = None
    got = model.generate(tokens, max_new_tokens=6, do_sample=False, pad_token_id=0)
    wanted = tokens
    for _ in range(6):
        wanted = torch.cat([wanted, model(wanted, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(got, wanted)
