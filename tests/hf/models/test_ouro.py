"""Ouro: its loop against the published architecture written out (else: `test_published.py`)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from published import OURO, OURO_HEADS, OURO_LAYERS, OURO_SHAPES, VOCABULARY, random_checkpoint
from torch import Tensor

from reverie.hf.models.ouro import OuroConfig, OuroForCausalLM

pytestmark = pytest.mark.hf


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
            (x @ w[f"{name}.{which}_proj.weight"].T).unflatten(-1, (OURO_HEADS, -1)).transpose(0, 1) for which in "qkv"
        )
        scores = rotate(q) @ rotate(k).transpose(1, 2) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1) @ w[f"{name}.o_proj.weight"].T

    def mlp(x: Tensor, name: str) -> Tensor:
        gate, up = (x @ w[f"{name}.{which}_proj.weight"].T for which in ("gate", "up"))
        return (F.silu(gate) * up) @ w[f"{name}.down_proj.weight"].T

    h = w["model.embed_tokens.weight"][tokens_T]
    for _ in range(steps):
        for i in range(OURO_LAYERS):
            layer = f"model.layers.{i}"
            y = attend(norm(h, f"{layer}.input_layernorm"), f"{layer}.self_attn")
            h = h + norm(y, f"{layer}.input_layernorm_2")
            y = mlp(norm(h, f"{layer}.post_attention_layernorm"), f"{layer}.mlp")
            h = h + norm(y, f"{layer}.post_attention_layernorm_2")
        h = norm(h, "model.norm")
    return h @ w["lm_head.weight"].T


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_stack_runs_as_often_as_the_config_says(steps: int) -> None:
    model = OuroForCausalLM(OuroConfig.from_dict(OURO)).eval()
    model.load_state_dict(random_checkpoint(OURO_SHAPES))
    tokens = torch.randint(1, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    model.config.total_ut_steps = steps
    for row, got in enumerate(model(tokens).logits):
        wanted = looped_logits(random_checkpoint(OURO_SHAPES), tokens[row], steps)
        torch.testing.assert_close(got.double(), wanted, atol=1e-4, rtol=1e-4)
