"""The call into fla-core: on CPU against stand-ins with its signatures, on CUDA against the reference."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from random_inputs import RULES, Inputs, Rule, assert_same, call, outcome, random_inputs
from torch import Tensor

from reverie.errors import UserError
from reverie.ops import fla, gated_delta_rule, hebbian_rule

each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
find_spec = importlib.util.find_spec


def pretend(monkeypatch: pytest.MonkeyPatch, *, installed: bool) -> None:
    def fake(name: str, package: str | None = None) -> object:
        return installed or None if name == "fla" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", fake)


@each_rule
def test_without_fla_core_the_error_says_how_to_install_it(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, installed=False)
    with pytest.raises(UserError, match=r"pip install 'reverie\[fla\]'"):
        call(rule, random_inputs(2), backend="fla")


@each_rule
def test_off_cuda_the_error_names_the_device_and_a_backend(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, installed=True)
    with pytest.raises(UserError, match="needs CUDA tensors, got cpu: use 'chunked'"):
        call(rule, random_inputs(2), backend="fla")


@pytest.mark.parametrize(
    ("version", "hopper", "tilelang", "wrong"),
    [
        ("3.3.1", True, False, False),
        ("3.6.0", True, False, True),
        ("3.6.0", True, True, False),
        ("3.6.0", False, False, False),
        ("3.7.1", True, False, False),
        ("3.8.0+git12", True, False, False),
    ],
)
def test_wrong_gradients_on_hopper_are_refused(
    version: str, hopper: bool, tilelang: bool, wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0) if hopper else (8, 0))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name != "tilelang" or tilelang or None)
    assert fla.miscompiled() == (version if wrong else "")
    if wrong:
        inputs: list[Any] = [x.as_subclass(OnCuda) for x in random_inputs(2)]
        with pytest.raises(UserError, match=f"wrong gradients on Hopper GPUs with triton {version}"):
            call(gated_delta_rule, Inputs(*inputs), backend="fla")


class OnCuda(Tensor):
    """A CPU tensor that says it is on CUDA."""

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return torch.device("cuda")


def plain(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.as_subclass(Tensor)


# Names, order and defaults as in fla-core 0.4 and 0.6; what we do not use is left out.
def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    assert not use_qk_l2norm_in_kernel
    inputs = Inputs(*map(plain, (q, k, v, g, beta, initial_state)))  # pyright: ignore[reportArgumentType]
    o, S = call(gated_delta_rule, inputs, backend="reference", scale=scale)
    return o, S if output_final_state else None


def chunk_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    assert q.dtype == k.dtype == v.dtype
    assert q.dtype != torch.float32, "ChunkDeltaRuleFunction does not support float32. Please use bfloat16."
    g = torch.zeros(beta.shape)
    return chunk_gated_delta_rule(q, k, v, g, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel)


def chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    assert g is not None
    assert g_gamma is None
    ones = torch.ones(g.shape)
    inputs = Inputs(*map(plain, (q, k, v, g, ones, initial_state)))  # pyright: ignore[reportArgumentType]
    o, S = call(hebbian_rule, inputs, backend="reference", scale=scale)
    return o, S if output_final_state else None


@each_rule
@pytest.mark.parametrize("with_q", [True, False])
def test_the_kernels_are_called_by_their_signatures(rule: Rule, with_q: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 too, which fla's own delta kernel refuses."""
    pretend(monkeypatch, installed=True)
    for kernel in (chunk_gated_delta_rule, chunk_delta_rule, chunk_simple_gla):
        name = f"fla.ops.{kernel.__name__.removeprefix('chunk_')}"
        module = ModuleType(name)
        setattr(module, kernel.__name__, kernel)
        for part in ("fla", "fla.ops"):
            monkeypatch.setitem(sys.modules, part, ModuleType(part))
        monkeypatch.setitem(sys.modules, name, module)
    inputs = random_inputs(6, dtype=torch.float32)
    inputs = inputs if with_q else inputs._replace(q=None)
    disguised: list[Any] = [None if x is None else x.as_subclass(OnCuda) for x in inputs]
    o, S = call(rule, Inputs(*disguised), backend="fla", scale=0.3)
    wanted_o, wanted_S = call(rule, inputs, backend="reference", scale=0.3)
    torch.testing.assert_close(plain(S), wanted_S)
    torch.testing.assert_close(plain(o), wanted_o)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("fla") is None, reason="needs CUDA and flash-linear-attention"
)
@each_rule
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("T", [1, 64, 130])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-2), (torch.bfloat16, 1e-1)])
def test_fla_is_the_reference(rule: Rule, T: int, state: bool, dtype: torch.dtype, tolerance: float) -> None:
    """Values and gradients, to the precision of its kernels (TF32 or bfloat16 products)."""
    inputs = random_inputs(T, K=64, V=64, state=state, dtype=torch.float32)
    inputs = inputs._replace(q=inputs.q.to(dtype), k=inputs.k.to(dtype), v=inputs.v.to(dtype))
    on_cuda: list[Any] = [None if x is None else x.cuda() for x in inputs]
    got = {name: None if x is None else x.cpu() for name, x in outcome(rule, Inputs(*on_cuda), backend="fla").items()}
    assert_same(got, outcome(rule, inputs, backend="reference"), tolerance)
