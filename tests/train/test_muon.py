"""Our Muon takes the steps of PyTorch's, to the rounding of bfloat16, and those of its formula, to that of float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reverie.train import optim
from reverie.train.optim import Muon, orthogonalise

SHAPES = [(6, 4), (4, 6), (8, 8), (6, 4), (1, 5), (6, 4)]
QUINTIC = (3.4445, -4.7750, 2.0315)


def matrices() -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in SHAPES]


def steps(muon: type[torch.optim.Muon], **options: Any) -> list[Tensor]:
    """The matrices after four steps, in which some of them have no gradient now and then."""
    held, random = matrices(), torch.Generator().manual_seed(1)
    optimizer = muon(held, lr=0.1, **options)
    for step in range(4):
        for i, p in enumerate(held):
            gradient = torch.randn(p.shape, generator=random)
            p.grad = None if (i + step) % 3 == 0 else gradient
        optimizer.step()
    return [p.detach() for p in held]


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.3}, {"nesterov": False, "momentum": 0.5}, {"ns_steps": 3}])
def test_the_steps_of_pytorch(options: dict[str, Any]):
    for ours, theirs in zip(steps(Muon, **options), steps(torch.optim.Muon, **options), strict=True):
        assert (ours - theirs).abs().max() < 0.1 * 4 * 0.02  # four steps of 0.1; bfloat16 has three digits


def test_a_learning_rate_may_be_a_tensor_that_is_filled_anew():
    """As a CUDA graph needs it."""
    found = []
    for lr in (0.1, torch.tensor(0.1)):
        held, random = matrices(), torch.Generator().manual_seed(1)
        optimizer = Muon(held, lr=lr, weight_decay=0.3)  # pyright: ignore[reportArgumentType]
        for rate in (0.1, 0.02, 0.3):
            if isinstance(lr, Tensor):
                lr.fill_(rate)
            else:
                optimizer.param_groups[0]["lr"] = rate
            for p in held:
                p.grad = torch.randn(p.shape, generator=random)
            optimizer.step()
        found.append(held)
    for as_number, as_tensor in zip(*found, strict=True):
        assert torch.allclose(as_number, as_tensor, atol=1e-6)


def test_state_goes_to_pytorchs_and_back():
    ours, theirs = Muon(matrices(), lr=0.1), torch.optim.Muon(matrices(), lr=0.1)
    for p in ours.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    ours.step()
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert all("momentum_buffer" in ours.state[p] for p in ours.param_groups[0]["params"])


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7), (4, 10), (30, 3)])
def test_singular_values_follow_the_quintic(shape: tuple[int, int]):
    """Newton-Schulz leaves singular vectors alone and applies a polynomial to each singular value."""
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2))
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(5):
        s = QUINTIC[0] * s + QUINTIC[1] * s**3 + QUINTIC[2] * s**5
    expected = u @ torch.diag_embed(s) @ vh
    got = orthogonalise(x, QUINTIC, 5, 1e-7)
    assert (got - expected).abs().max() < 1e-5
    assert torch.allclose(orthogonalise(1e3 * x, QUINTIC, 5, 1e-7), got, atol=1e-5)


@pytest.mark.parametrize("span", [1.0, 1e3, 1e6])
def test_products_of_gram_matrices_are_the_same_iterations(span: float):
    """In wide matrices; whatever their singular values span."""
    x = torch.randn(2, 16, 48, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    x = (u * torch.logspace(0, -torch.tensor(span).log10(), 16, dtype=torch.float64)) @ vh
    x = x / torch.linalg.matrix_norm(x, keepdim=True)
    wanted = optim._iterations(x, QUINTIC, 5)
    assert torch.allclose(optim._by_gram_matrix(x, QUINTIC, 5), wanted, atol=1e-9)
    assert (optim._by_gram_matrix(x.float(), QUINTIC, 5) - wanted).norm() < 1e-3 * wanted.norm()


@pytest.mark.parametrize("steps", [5, 8])
@pytest.mark.parametrize("rank", [1, 4])
def test_a_wide_matrix_of_low_rank(rank: int, steps: int):
    """However many steps: what is rounded stays small."""
    random = torch.Generator().manual_seed(4)
    x = torch.randn(2, 64, rank, generator=random) @ torch.randn(2, rank, 256, generator=random)
    double = x.double()
    wanted = optim._iterations(double / torch.linalg.matrix_norm(double, keepdim=True), QUINTIC, steps)
    assert (orthogonalise(x, QUINTIC, steps, 1e-7) - wanted).norm() < 1e-2 * wanted.norm()


def test_no_gradient_no_step():
    held = [nn.Parameter(torch.ones(2, 3))]
    Muon(held, lr=0.1, weight_decay=0.5).step()
    assert torch.equal(held[0], torch.ones(2, 3))


def test_a_gradient_of_zeros_moves_nothing():
    assert not orthogonalise(torch.zeros(2, 3, 4), QUINTIC, 5, 1e-7).any()
