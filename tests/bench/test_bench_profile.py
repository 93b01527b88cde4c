"""Where the time goes: every operation has one kind, and the kinds add up."""

from __future__ import annotations

import pytest
import torch

from reverie.bench.card import number
from reverie.bench.profile import KINDS, kind_of, time_by_kind


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::mm", "matrix products"),
        ("aten::baddbmm_", "matrix products"),
        ("aten::linalg_solve_triangular", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::copy_", "moves and fills"),
        ("aten::_to_copy", "other steps"),
        ("aten::mul", "other steps"),
        ("_ChunkedBackward", "other steps"),
        ("Torch-Compiled Region: CompiledFxGraph", "fused by compile"),
    ],
)
def test_kinds(operation: str, kind: str) -> None:
    assert kind_of(operation) == kind


def test_times_are_a_call() -> None:
    a, calls = torch.randn(300, 300), []

    def call() -> None:
        calls.append(1)
        (a @ a).exp_()

    row = time_by_kind(call, repeats=3)
    assert len(calls) == 4  # the first one is not counted
    assert list(row) == [*(f"{kind.replace(' ', '_')}_ms" for kind in KINDS), "operations"]
    assert number(row, "matrix_products_ms") > 0
    assert number(row, "other_steps_ms") > 0
    assert number(row, "attention_ms") == number(row, "fused_by_compile_ms") == 0
    assert number(row, "operations") >= 2
