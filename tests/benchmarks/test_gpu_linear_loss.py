"""`linear_cross_entropy` is the cross entropy of a linear head, in value and gradients, chunk by chunk."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reverie.bench.memory import TensorBytes

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))
linear_loss: Any = importlib.import_module("linear_loss")
linear_cross_entropy = linear_loss.linear_cross_entropy

N, D, VOCAB = 10, 6, 7


def inputs(dtype: torch.dtype = torch.float64, n: int = N, vocab: int = VOCAB) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    h, weight = (torch.randn((m, D), generator=random, dtype=torch.float64).to(dtype) for m in (n, vocab))
    return h.requires_grad_(), weight.requires_grad_(), torch.randint(vocab, (n,), generator=random)


def plain(h: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(
        (h @ weight.T).float() if h.dtype != torch.float64 else h @ weight.T, targets, reduction="sum"
    )


@pytest.mark.parametrize("at_once", [1, VOCAB, 3 * VOCAB, 5 * VOCAB + 1, 10**6])
def test_it_is_cross_entropy_in_value_and_gradients(at_once: int) -> None:
    h, weight, targets = inputs()
    got, wanted = linear_cross_entropy(h, weight, targets, at_once=at_once), plain(h, weight, targets)
    torch.testing.assert_close(got, wanted)
    for x in (h, weight):
        (slope,), (wanted_slope,) = (torch.autograd.grad(3 * y, [x], retain_graph=True) for y in (got, wanted))
        torch.testing.assert_close(slope, wanted_slope)


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bfloat16_it_is_as_exact_as_the_plain_one(autocast: bool) -> None:
    """Given bfloat16, or under autocast float32: the loss in float32, gradients in the types of what they belong to."""
    exact = inputs(n=500, vocab=300)
    truth = torch.autograd.grad(plain(*exact), exact[:2])
    h, weight, targets = inputs(torch.float32 if autocast else torch.bfloat16, n=500, vocab=300)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = linear_cross_entropy(h, weight, targets, at_once=64 * 300), plain(h, weight, targets)
    assert losses[0].dtype == torch.float32
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    ours, theirs = (torch.autograd.grad(loss, [h, weight]) for loss in losses)
    for got, other, wanted, given in zip(ours, theirs, truth, (h, weight), strict=True):
        assert got.dtype == given.dtype
        errors = [(x.double() - wanted).norm() / wanted.norm() for x in (got, other)]
        assert errors[0] < 1.2 * errors[1] < 0.02


def test_all_logits_are_never_there() -> None:
    h, weight, targets = inputs(torch.float32, n=4000, vocab=100)
    peaks = []
    for loss in (plain, lambda *given: linear_cross_entropy(*given, at_once=100 * 100)):
        with TensorBytes([h, weight, targets]) as counter:
            loss(h, weight, targets).backward()
        peaks.append(counter.peak)
    logits = 4 * 4000 * 100
    assert peaks[0] > 2 * logits
    assert peaks[1] < 0.3 * logits


def test_without_gradients_none_are_made() -> None:
    h, weight, targets = (x.detach() for x in inputs())
    assert not linear_cross_entropy(h, weight, targets).requires_grad


def test_no_position_is_no_loss() -> None:
    h, weight, targets = inputs(n=0)
    loss = linear_cross_entropy(h, weight, targets)
    loss.backward()
    assert loss.item() == 0
    assert weight.grad is not None
    assert not weight.grad.any()
