"""Jet-Nemotron: its Jet block against the paper's formulas, and what its config says (else: `test_published.py`)."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from published import JET, JET_SHAPES, WINDOW, random_checkpoint
from torch import Tensor

from reverie.hf.models.jet_nemotron import JetBlock, JetNemotronConfig, JetNemotronForCausalLM

pytestmark = pytest.mark.hf


def test_the_config_names_layers_as_transformers_does() -> None:
    config = JetNemotronConfig.from_dict(JET)
    assert config.layer_types == ["linear_attention", "sliding_attention", "full_attention", "linear_attention"]
    assert config.sliding_window == WINDOW
    assert dict(config.rope_parameters or {})["rope_theta"] == 1e6


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


def test_a_jet_block_is_what_the_paper_says() -> None:
    model = JetNemotronForCausalLM(JetNemotronConfig.from_dict(JET)).eval()
    model.load_state_dict(random_checkpoint(JET_SHAPES), strict=False)
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
    model = JetNemotronForCausalLM(JetNemotronConfig.from_dict({**JET, **layers})).eval()
    h = torch.randn(1, 8, 16, requires_grad=True)
    model(inputs_embeds=h).logits[0, -1].square().sum().backward()
    assert h.grad is not None
    assert h.grad[0].abs().sum(-1).bool().tolist() == [False] * 5 + [True] * 3


def test_a_new_model_has_a_memory_that_forgets_slowly() -> None:
    block = JetNemotronForCausalLM(JetNemotronConfig.from_dict(JET)).model.layers[0].self_attn
    assert isinstance(block, JetBlock)
    decay = torch.exp(-block.A_log.exp() * F.softplus(block.dt_bias))
    assert ((decay > 0.2) & (decay < 0.9991)).all()
    assert block.dynamic_conv1d.kernel_generator.w2.bias.std() > 0.3
