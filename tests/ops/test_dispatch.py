"""Backends are chosen by name, never silently, and precision does not depend on autocast."""

from __future__ import annotations

import functools
import inspect
import logging

import pytest
import torch
from random_inputs import RULES, Inputs, Rule, call, random_inputs
from torch import Tensor

from reverie.errors import UserError
from reverie.ops import BACKENDS, dispatch, gated_delta_rule, run_rule

each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


@each_rule
def test_an_unknown_backend_is_an_error_that_names_the_known(rule: Rule) -> None:
    with pytest.raises(UserError, match="unknown backend 'cuda'") as caught:
        call(rule, random_inputs(2), backend="cuda")
    assert all(name in str(caught.value) for name in BACKENDS)


@each_rule
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_token_is_an_error(rule: Rule, backend: str) -> None:
    with pytest.raises(UserError, match="at least one token"):
        call(rule, random_inputs(2).cut(0, 0), backend=backend)


def test_auto_is_chunked_on_cpu_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    dispatch._log_choice.cache_clear()
    inputs = random_inputs(5)
    with caplog.at_level(logging.INFO, "reverie"):
        outcomes = [call(gated_delta_rule, inputs, backend="auto") for _ in range(3)]
    assert [record.getMessage() for record in caplog.records] == [
        "backend 'auto' runs the fast weights on 'chunked' for cpu tensors"
    ]
    torch.testing.assert_close(outcomes[0], call(gated_delta_rule, inputs, backend="chunked"), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("installed", "small", "wanted"),
    [
        ("triton fla", True, "triton"),
        ("triton fla", False, "fla"),
        ("triton", False, "chunked"),
        ("fla", True, "fla"),
        ("", True, "chunked"),
    ],
)
def test_auto_on_cuda_takes_the_fastest_that_runs(
    installed: str, small: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("triton", "fla"):
        monkeypatch.setattr(f"reverie.ops.{name}.installed", lambda name=name: name in installed.split())
    assert dispatch._choose("cuda", small) == wanted


def test_auto_on_cuda_passes_by_kernels_with_wrong_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reverie.ops.triton.installed", lambda: True)
    monkeypatch.setattr("reverie.ops.fla.installed", lambda: True)
    monkeypatch.setattr("reverie.ops.fla.miscompiled", lambda: "3.6.0")
    assert dispatch._choose("cuda", False) == "chunked"


@pytest.mark.parametrize("backend", ["auto", "chunked"])
def test_choosing_leaves_a_compiled_graph_whole(backend: str) -> None:
    rule = torch.compile(functools.partial(inspect.unwrap(run_rule), "gated_delta"), backend="eager", fullgraph=True)
    inputs = random_inputs(5, dtype=torch.float32)
    compiled = call(rule, inputs, backend=backend)
    torch.testing.assert_close(compiled, call(gated_delta_rule, inputs, backend="chunked"), rtol=0, atol=0)


def test_the_default_is_chunked() -> None:
    inputs = random_inputs(5)
    chunked = call(gated_delta_rule, inputs, backend="chunked")
    torch.testing.assert_close(call(gated_delta_rule, inputs), chunked, rtol=0, atol=0)


@each_rule
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_autocast_changes_nothing(rule: Rule, backend: str) -> None:
    """Neither the memory nor its products fall to bfloat16."""
    inputs = random_inputs(9, dtype=torch.float32)
    plain = call(rule, inputs, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        cast = call(rule, inputs, backend=backend)
    assert cast[1].dtype == torch.float32
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)


@each_rule
def test_autocast_around_backward_changes_nothing(rule: Rule) -> None:
    gradients = list[Tensor]()
    for enabled in (False, True):
        inputs = Inputs(*(x.requires_grad_() for x in random_inputs(9, dtype=torch.float32)))
        o, S = call(rule, inputs, backend="chunked")
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            (o.square().sum() + S.square().sum()).backward()
        assert inputs.k.grad is not None
        gradients.append(inputs.k.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@each_rule
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_a_float32_state_stays_float32_under_bfloat16_tokens(rule: Rule, backend: str) -> None:
    inputs = random_inputs(3, dtype=torch.bfloat16)
    o, S = call(rule, inputs, backend=backend)
    assert (o.dtype, S.dtype) == (torch.bfloat16, torch.float32)
