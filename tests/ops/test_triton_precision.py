"""Our kernels with the rounding of tensor cores, in Triton's interpreter, against the specification in float64.

By itself the interpreter multiplies float32 exactly, and the bits of bfloat16 as if they were whole numbers.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np
import pytest
import torch
from random_inputs import RULES, Inputs, Rule, outcome, random_inputs

from reverie.ops import triton

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs triton and TRITON_INTERPRET=1: make test-triton",
)

Array = np.ndarray[Any, Any]
TF32_BITS = 0xFFFFE000  # that tensor cores read of a float32: its sign, its exponent, and 10 bits of the rest


@pytest.fixture(autouse=True)
def tensor_cores(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Products as `mma.sync` makes them: of TF32 or bfloat16, summed in float32. Returns the formats that came up."""
    import triton.language as tl  # pyright: ignore[reportMissingImports]
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle  # pyright: ignore[reportMissingImports]

    from reverie.ops import triton_kernels

    seen: list[str] = []
    cast = InterpreterBuilder.cast_impl

    def operand(x: Any, precision: Any) -> Array:
        if x.dtype.scalar == tl.bfloat16:
            seen.append("bfloat16")
            return (x.data.astype(np.uint32) << 16).view(np.float32)
        assert x.dtype.scalar == tl.float32
        assert precision.name == "TF32"
        seen.append("tf32")
        return (np.ascontiguousarray(x.data).view(np.uint32) & np.uint32(TF32_BITS)).view(np.float32)

    def product(self: Any, a: Any, b: Any, d: Any, precision: Any, _: Any) -> Any:
        return TensorHandle(np.matmul(operand(a, precision), operand(b, precision)) + d.data, d.dtype.scalar)

    def rounded(self: Any, x: Any, to: Any) -> Any:
        """To the nearest bfloat16, as a GPU does; the interpreter cuts the last digits off."""
        if (x.dtype.scalar, to.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, x, to)
        short = torch.from_numpy(np.ascontiguousarray(x.data)).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return TensorHandle(short, to.scalar)

    def operands(dtype: torch.dtype, precision: str) -> dict[str, object]:
        return {"OPERAND": tl.bfloat16 if dtype == torch.bfloat16 else tl.float32, "PRECISION": precision}

    monkeypatch.setattr(InterpreterBuilder, "create_dot", product)
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", rounded)
    monkeypatch.setattr(triton_kernels, "operands", operands)
    return seen


def inputs_of(T: int, dtype: torch.dtype) -> Inputs:
    inputs = random_inputs(T, B=1, H=1, K=32, V=48, dtype=torch.float32)
    return inputs._replace(q=inputs.q.to(dtype), k=inputs.k.to(dtype), v=inputs.v.to(dtype))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("T", [24, 64, 75])
@pytest.mark.parametrize(
    ("dtype", "name", "most", "least"),
    [(torch.float32, "tf32", 3e-3, 1e-5), (torch.bfloat16, "bfloat16", 8e-3, 1e-4)],
    ids=["tf32", "bfloat16"],
)
def test_values_and_gradients_to_the_rounding_of_the_format(
    rule: Rule, T: int, dtype: torch.dtype, name: str, most: float, least: float, tensor_cores: list[str]
) -> None:
    """Each result and gradient as a whole, on the very inputs that the kernels get. Some must be off, or nothing was
    rounded."""
    inputs = inputs_of(T, dtype)
    got = outcome(rule, inputs, backend="triton")
    wanted = outcome(rule, Inputs(*(x.double() for x in inputs)), backend="reference")
    assert set(tensor_cores) == {name}
    errors = {}
    for key, x in wanted.items():
        y = got[key]
        if x is None or y is None:
            assert x is y, key
            continue
        errors[key] = float((y.detach().double() - x).norm() / x.norm())
    assert {key: error for key, error in errors.items() if not error < most} == {}
    assert max(errors.values()) > least


def test_the_state_that_many_windows_add_to_stays_float32() -> None:
    """16 windows of bfloat16, each rounded once: hardly farther off than one is."""
    inputs = inputs_of(64, torch.bfloat16)
    S = triton.recurrence(*inputs[:5], initial_state=inputs.initial_state, scale=1.0, erase=True, chunk_size=4)[1]
    wanted = outcome(RULES["gated_delta"], Inputs(*(x.double() for x in inputs)), backend="reference")["S"]
    assert S.dtype == torch.float32
    assert wanted is not None
    assert float((S.double() - wanted).norm() / wanted.norm()) < 5e-3
