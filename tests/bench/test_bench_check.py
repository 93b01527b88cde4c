"""What stands before every measurement."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from reverie.bench.check import gradients_of, random_model, require_equal, require_equal_gradients
from reverie.errors import UserError
from reverie.model import HybridConfig, HybridLM
from reverie.sleep import SleepConfig, rollout


def test_the_difference_is_a_share_of_the_largest_entry() -> None:
    wanted = torch.tensor([0.0, -200.0, 1.0])
    assert require_equal(wanted, wanted, 0.0, "x") == 0
    got = wanted + torch.tensor([0.0, 0.0, 1.0])
    assert require_equal(got, wanted, 0.01, "x") == pytest.approx(0.005)


@pytest.mark.parametrize("off", [0.5, math.inf, math.nan])
def test_what_is_off_is_refused(off: float) -> None:
    wanted = torch.ones(3)
    with pytest.raises(UserError, match=r"^nothing is measured: x is off by .* of its largest entry, where 1e-01 is"):
        require_equal(wanted + torch.tensor([0.0, off, 0.0]), wanted, 0.1, "x")


def test_nothing_at_all_is_no_result() -> None:
    with pytest.raises(UserError, match="off by nan"):
        require_equal(torch.zeros(3), torch.zeros(3), 0.1, "x")


@pytest.fixture
def models(tiny_config: Callable[..., HybridConfig]) -> list[HybridLM]:
    """Two alike, with gradients."""
    models = [random_model(tiny_config("attn", "gdn"), 0) for _ in range(2)]
    tokens = torch.arange(10).view(1, 10)
    for model in models:
        logits, _ = rollout(model, tokens, tokens > 4, SleepConfig(window_size=5, num_sleep_passes=2))
        logits.square().sum().backward()
    return models


def test_everything_in_a_random_model_matters(models: list[HybridLM]) -> None:
    gradients = gradients_of(models[0])
    assert gradients.keys() == dict(models[0].named_parameters()).keys()
    assert all(gradient.any() for gradient in gradients.values())


def test_gradients_that_differ_or_are_missing_are_refused(models: list[HybridLM]) -> None:
    one, other = models
    require_equal_gradients(one, other, 0.0, "of these")
    name, parameter = next(iter(one.named_parameters()))
    assert parameter.grad is not None
    parameter.grad[0] += 1e-3 * parameter.grad.abs().max()
    with pytest.raises(UserError, match=rf"of these, the gradient of {name} is off by"):
        require_equal_gradients(one, other, 1e-6, "of these")
    parameter.grad = None
    with pytest.raises(UserError, match=rf"of these, {name} has a gradient on one side alone"):
        require_equal_gradients(other, one, 1.0, "of these")
