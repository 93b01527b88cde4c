"""Every parameter has one optimiser, and learning rates take the course that the recipe says."""

from __future__ import annotations

from typing import Literal, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_recipe import tiny_recipe
from torch import nn

from reverie.model import HybridLM
from reverie.recipe import OptimConfig
from reverie.train.optim import build_optimizers, lr_factor, parameter_groups, set_lr

Decay = Literal["constant", "linear", "cosine"]


def model_of_all_kinds() -> HybridLM:
    return HybridLM(tiny_recipe(model={"layers": ["attn", "gdn", "jet", "jet-only"]}).hybrid)


def config(**changes: object) -> OptimConfig:
    return OptimConfig.model_validate({"muon_lr": 1e-2, "adamw_lr": 1e-3, **changes})


def test_every_parameter_is_in_exactly_one_group():
    model = model_of_all_kinds()
    matrices, rest = parameter_groups(model)
    assert matrices.keys() | rest.keys() == dict(model.named_parameters()).keys()
    assert not matrices.keys() & rest.keys()
    for name, parameter in model.named_parameters():
        assert (matrices | rest)[name] is parameter


def test_the_optimisers_hold_what_the_groups_say():
    model = model_of_all_kinds()
    groups = parameter_groups(model)
    muon, adamw = build_optimizers(model, config())
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    for optimizer, group in zip((muon, adamw), groups, strict=True):
        held = [parameter for part in optimizer.param_groups for parameter in part["params"]]
        assert sorted(map(id, held)) == sorted(map(id, group.values()))


def test_hidden_matrices_are_the_weights_of_linear_layers_inside_the_blocks():
    matrices, rest = parameter_groups(model_of_all_kinds())
    assert all(name.startswith("layers.") and name.endswith(".weight") for name in matrices)
    assert all(parameter.ndim == 2 for parameter in matrices.values())
    # In the other tensors of weights a row or a column is a thing of its own: a token, or a tap.
    left = {name.removeprefix("layers.") for name in rest if name.endswith("weight")}
    assert left == {"embedding.weight", "lm_head.weight", "1.mixer.conv_weight"}
    for part in ("mixer.qkv_proj", "mixer.out_proj", "mixer.kernel_in", "mixer.kernel_out", "mlp."):
        assert any(part in name for name in matrices), part


def test_a_frozen_parameter_is_in_no_group():
    model = model_of_all_kinds()
    frozen = {"embedding.weight", "layers.0.mlp.out_proj.weight"}
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    matrices, rest = parameter_groups(model)
    assert matrices.keys() | rest.keys() == dict(model.named_parameters()).keys() - frozen
    held = [p for optimizer in build_optimizers(model, config()) for g in optimizer.param_groups for p in g["params"]]
    assert all(parameter.requires_grad for parameter in held)


def test_a_head_deeper_in_the_model_is_still_a_head():
    outer = nn.ModuleDict({"inner": model_of_all_kinds()})
    matrices, rest = parameter_groups(outer)
    assert "inner.lm_head.weight" in rest
    assert "inner.lm_head.weight" not in matrices


@given(
    decay=st.sampled_from(get_args(Decay)), warmup=st.integers(0, 30), total=st.integers(1, 100), final=st.floats(0, 1)
)
def test_the_rate_rises_to_its_peak_and_then_falls_to_its_end(decay: Decay, warmup: int, total: int, final: float):
    optim = config(decay=decay, warmup_steps=warmup, final_lr_fraction=final)
    factors = [lr_factor(optim, step, total) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = max(warmup - 1, 0)
    if peak < total:
        assert factors[peak] == 1
        assert factors[: peak + 1] == sorted(factors[: peak + 1])
        assert factors[peak:] == sorted(factors[peak:], reverse=True)
    if warmup:
        assert factors[: warmup - 1] == [(step + 1) / warmup for step in range(min(warmup - 1, total))]


@given(decay=st.sampled_from(["linear", "cosine"]), warmup=st.integers(0, 30), final=st.floats(0, 1))
def test_the_decay_ends_at_the_final_share(decay: Decay, warmup: int, final: float):
    total = warmup + 50
    optim = config(decay=decay, warmup_steps=warmup, final_lr_fraction=final)
    assert lr_factor(optim, total, total) == pytest.approx(final)
    assert lr_factor(optim, total + 7, total) == pytest.approx(final)
    # The last step is one step of the decay before that, so that it is not wasted where the end is zero.
    assert final - 1e-9 <= lr_factor(optim, total - 1, total) <= final + (1 - final) / 50 + 1e-9


def test_the_decays_by_hand():
    def course(decay: Decay) -> list[float]:
        optim = config(decay=decay, warmup_steps=2, final_lr_fraction=0.2)
        return [lr_factor(optim, step, 6) for step in range(7)]

    assert course("constant") == [0.5, 1, 1, 1, 1, 1, 1]
    assert course("linear") == pytest.approx([0.5, 1, 1, 0.8, 0.6, 0.4, 0.2])
    half = 0.5**0.5 / 2
    assert course("cosine") == pytest.approx([0.5, 1, 1, 0.2 + 0.8 * (0.5 + half), 0.6, 0.2 + 0.8 * (0.5 - half), 0.2])


def test_both_optimisers_follow_the_same_course_from_peaks_of_their_own():
    optim = config(muon_lr=0.5, adamw_lr=0.25, warmup_steps=4)
    optimizers = build_optimizers(model_of_all_kinds(), optim)
    set_lr(optimizers, optim, step=1, total_steps=10)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    assert rates == [[0.25], [0.125]]
