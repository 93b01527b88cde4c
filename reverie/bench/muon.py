"""A step of our Muon beside PyTorch's, on the matrices of a model: part of `reverie bench train`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reverie.bench.card import Row
from reverie.bench.check import require_equal
from reverie.bench.sides import SEED, Shape, recipe_of
from reverie.bench.timing import alternate
from reverie.model import new_model
from reverie.train.muon import Muon
from reverie.train.optim import parameter_groups

TOLERANCE = 0.05  # of the largest entry: PyTorch's orthogonalises in bfloat16


def measure_muon(shapes: Sequence[Shape], seconds: float) -> list[Row]:
    """Raises UserError where the two take different steps; that one is not timed then."""
    return [_row(shape, seconds / len(shapes)) for shape in shapes]


def _row(shape: Shape, seconds: float) -> Row:
    ours, theirs = _with_gradients(Muon, shape), _with_gradients(torch.optim.Muon, shape)
    for mine, other in zip(_first_step(ours), _first_step(theirs), strict=True):
        require_equal(mine, other, TOLERANCE, f"the step of our Muon, {shape.name}")
    times = alternate({"ours": ours.step, "torch": theirs.step}, seconds=seconds)
    return {
        "model": shape.name.split(",")[0],
        "matrices": len(ours.param_groups[0]["params"]),
        "ours_ms": 1e3 * times["ours"].median,
        "torch_ms": 1e3 * times["torch"].median,
        "ratio": times["torch"].median / times["ours"].median,
    }


def _with_gradients(muon: type[torch.optim.Muon], shape: Shape) -> torch.optim.Muon:
    recipe = recipe_of(shape, "float32")
    matrices, _ = parameter_groups(new_model(recipe.hybrid, SEED))
    random = torch.Generator().manual_seed(SEED)
    for p in matrices.values():
        p.grad = torch.randn(p.shape, generator=random)
    return muon(matrices.items(), lr=recipe.optim.muon_lr, weight_decay=0.0)


def _first_step(muon: torch.optim.Muon) -> list[Tensor]:
    """What it adds to each matrix."""
    matrices: list[Tensor] = muon.param_groups[0]["params"]
    before = [p.detach().clone() for p in matrices]
    muon.step()
    return [p.detach() - old for p, old in zip(matrices, before, strict=True)]
