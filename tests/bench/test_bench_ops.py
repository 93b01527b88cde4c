"""The rule beside others: nothing is timed that is wrong, and the headline is the worst of all lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_benchmark import PEAK, Parts, clock, never, one_round
from torch import Tensor

from reverie.bench import ops
from reverie.bench.count import count_flops
from reverie.bench.ops import Case, make_case, measure, ours
from reverie.bench.rivals import fla_rule
from reverie.errors import UserError

Outcome = tuple[Tensor, Tensor]


def test_a_length_measured() -> None:
    parts = Parts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "alternate", one_round)
        findings = measure(PEAK, parts, lengths=(64,))
    parts.assert_whole()
    forward, both, checks = findings.details.tables.values()
    for [row] in (forward, both):
        assert row["T"] == 64
        times = [row[name] for name in ("ours_ms", "transformers_ms", "best_ms", "GFLOPS", "%_of_matmul_peak")]
        assert all(isinstance(time, float) and time > 0 for time in times)
        assert ("fla_chunk_ms" in row) == (fla_rule() is not None)
    assert findings.ratio == pytest.approx(both[0]["ratio"] / 2.0, rel=1e-4)  # type: ignore[operator]
    assert all(0 <= value < 1e-5 for key, value in checks[0].items() if key != "T")  # type: ignore[operator]
    assert findings.better == "higher"


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`measure` at T = 64 and 256 without checks, and with times by name."""

    def run(lengths: tuple[int, ...] = (64, 256), **times: float) -> Any:
        monkeypatch.setattr(ops, "alternate", clock({name.replace("_", " "): time for name, time in times.items()}))
        return measure(PEAK, Parts(), lengths=lengths)

    monkeypatch.setattr(ops, "_check", lambda T, rivals: {"T": T})
    monkeypatch.setattr(ops, "fla_rule", lambda: ours)
    monkeypatch.setattr(ops, "transformers_rule", lambda: ours)
    monkeypatch.setattr(ops, "make_case", lambda T: make_case(4))
    return run


def test_the_fastest_other_counts(unchecked: Callable[..., Any]) -> None:
    findings = unchecked(ours=0.1, transformers=0.5, fla_chunk=0.3)
    for row in findings.details.tables["forward and backward"]:
        assert row["ratio"] == pytest.approx(3.0)
        assert (row["ours_ms"], row["best_ms"], row["fla_chunk_ms"]) == pytest.approx((100.0, 50.0, 300.0))
    assert findings.ratio == pytest.approx(1.5)
    assert findings.reached


def test_the_headline_is_the_worst_length_over_its_own_target(
    unchecked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "TARGETS", {64: 2.0, 256: 2.0, 1024: 2.0, 4096: 5.0})
    findings = unchecked(lengths=(64, 4096), ours=0.1, transformers=0.3, fla_chunk=0.6)
    assert [row["target"] for row in findings.details.tables["forward and backward"]] == [2.0, 5.0]
    assert findings.ratio == pytest.approx(0.6)
    assert not findings.reached


def test_operations_over_time_are_a_share_of_the_peak(unchecked: Callable[..., Any]) -> None:
    [row] = unchecked((64,), ours=0.1, transformers=1, fla_chunk=1).details.tables["forward"]
    flops = count_flops(lambda: make_case(4).forward(ours))
    assert row["GFLOPS"] == pytest.approx(flops / 0.1 / 1e9)
    assert row["%_of_matmul_peak"] == pytest.approx(100 * row["GFLOPS"] / 200.0)


def test_without_fla_it_is_said(unchecked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "fla_rule", lambda: None)
    findings = unchecked(ours=0.1, transformers=0.5)
    assert any("fla-core is not installed" in note for note in findings.details.notes)


def larger_output(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Outcome:
    o, state = ours(q, k, v, g, beta)
    return o * (1 + 1e-4), state


def one_wrong_state(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Outcome:
    o, state = ours(q, k, v, g, beta)
    wrong = torch.zeros_like(state)
    wrong[-1, -1, -1, -1] = 1e-3
    return o, state + wrong


def wrong_gradient(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Outcome:
    """Of the decay alone; the results are right."""
    return ours(q, k, v, g.detach() + (g - g.detach()) * (1 + 1e-4), beta)


def wrong_without_gradients(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Outcome:
    o, state = ours(q, k, v, g, beta)
    return (o if torch.is_grad_enabled() else o + 1e-2), state


def not_a_number(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Outcome:
    o, state = ours(q, k, v, g, beta)
    return o, state * float("nan")


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (larger_output, "o"),
        (one_wrong_state, "the final state"),
        (wrong_gradient, "the gradient of g"),
        (wrong_without_gradients, "o"),
        (not_a_number, "the final state"),
    ],
)
def test_what_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch, wrong: Any, what: str) -> None:
    monkeypatch.setattr(ops, "ours", wrong)
    monkeypatch.setattr(ops, "alternate", never)
    with pytest.raises(UserError, match=rf"^nothing is measured: at T = 64, beside the spec[a-z]+, {what} is off by"):
        measure(PEAK, Parts(), lengths=(64,))


@pytest.mark.parametrize("name", ["transformers", "fla chunk"])
def test_another_that_is_wrong_is_not_timed_either(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(ops, "transformers_rule", lambda: larger_output if name == "transformers" else ours)
    monkeypatch.setattr(ops, "fla_rule", lambda: larger_output)
    monkeypatch.setattr(ops, "alternate", never)
    with pytest.raises(UserError, match=f"at T = 64, beside {name}, o is off by"):
        measure(PEAK, Parts(), lengths=(64,))


def test_all_sides_get_the_same_inputs_and_dense_cotangents() -> None:
    case, again = make_case(64), make_case(64)
    for one, other in zip((*case.inputs, *case.cotangents), (*again.inputs, *again.cotangents), strict=True):
        assert torch.equal(one, other)
        assert one.is_contiguous()
    assert all(x.requires_grad for x in case.inputs)
    q, k, _, g, beta = case.inputs
    assert torch.allclose(torch.cat([q, k]).norm(dim=-1), torch.ones(1))
    assert ((g <= 0) & (beta > 0) & (beta < 1)).all()
    decays = g.exp().flatten().quantile(torch.tensor([0.03, 0.97]))
    assert ((decays > 0.74) & (decays < 0.995)).all()


def test_gradients_go_through_output_and_state() -> None:
    """Of both with their cotangents, and of all five inputs."""
    q, k, v, g, beta = (x[:1, :8].detach().requires_grad_() for x in make_case(64).inputs)
    case = Case((q, k, v, g, beta), (torch.randn(1, 8, 4, 128), torch.randn(1, 4, 64, 128)))
    _, _, *gradients = case.backward(ours)
    o, state = ours(q, k, v, g, beta)
    ((o * case.cotangents[0]).sum() + (state * case.cotangents[1]).sum()).backward()
    for x, gradient in zip(case.inputs, gradients, strict=True):
        assert x.grad is not None
        assert torch.allclose(gradient, x.grad, atol=1e-5)
