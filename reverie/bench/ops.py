"""`reverie bench ops`: the gated delta rule in parallel form, beside transformers' and fla's plain torch functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from reverie.bench.card import Details, Findings, Row, number
from reverie.bench.check import require_equal
from reverie.bench.count import count_flops
from reverie.bench.machine import Peak
from reverie.bench.rivals import Rule, fla_rule, transformers_rule
from reverie.bench.timer import alternate
from reverie.model.config import Backend
from reverie.ops import gated_delta_rule
from reverie.results.card import Report

B, H, K, V = 4, 4, 64, 128
TARGETS = {64: 2.0, 256: 2.0, 1024: 2.0, 4096: 5.0}  # by T: how much faster than the fastest other
LONGEST_REFERENCE = 256  # tokens; the specification goes token by token
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}  # of the largest entry


class Case(NamedTuple):
    """Inputs of one length with gradients on, and random cotangents: a sum's would be a single number, expanded."""

    inputs: tuple[Tensor, ...]  # q, k, v, g, beta
    cotangents: tuple[Tensor, Tensor]  # of o and of the final state

    def to(self, dtype: torch.dtype) -> Case:
        inputs = tuple(x.detach().to(dtype).requires_grad_() for x in self.inputs)
        return Case(inputs, (self.cotangents[0].to(dtype), self.cotangents[1].to(dtype)))

    def forward(self, rule: Rule) -> tuple[Tensor, ...]:
        """o and the final state, without gradients."""
        with torch.no_grad():
            return rule(*self.inputs)

    def backward(self, rule: Rule) -> tuple[Tensor, ...]:
        """o, the final state and the five gradients."""
        o, state = rule(*self.inputs)
        return o, state, *torch.autograd.grad((o, state), self.inputs, self.cotangents)


def make_case(T: int) -> Case:
    """Inputs as a trained layer sees them: keys and queries of norm 1, decays mostly between 0.75 and 0.99."""
    random = torch.Generator().manual_seed(T)
    normal = partial(torch.randn, generator=random)
    q, k = (F.normalize(normal(B, T, H, K), dim=-1) for _ in range(2))
    v, g, beta = normal(B, T, H, V), -F.softplus(normal(B, T, H) - 3), normal(B, T, H).sigmoid()
    inputs = tuple(x.requires_grad_() for x in (q, k, v, g, beta))
    return Case(inputs, (normal(B, T, H, V), normal(B, H, K, V)))


def _on(backend: Backend) -> Rule:
    """Our rule on one of its backends, with what others take and return."""

    def rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        o, state = gated_delta_rule(q, k, v, g, beta, backend=backend)
        assert o is not None
        return o, state

    return rule


ours, _specification = _on("chunked"), _on("reference")


def measure(peak: Peak, report: Report, lengths: Sequence[int] = tuple(TARGETS), seconds: float = 15.0) -> Findings:
    """Times over `lengths` T, float32; the fastest other function counts.

    Raises:
        UserError: o, the final state or a gradient differs; then nothing is timed.
    """
    rivals, fla = {"transformers": transformers_rule()}, fla_rule()
    if fla is not None:
        rivals["fla chunk"] = fla
    checks = []
    for i, T in enumerate(lengths):
        report(i, 3 * len(lengths), f"T {T}: check")
        checks.append(_check(T, rivals))
    forward: list[Row] = []
    both: list[Row] = []
    for i, T in enumerate(lengths, start=len(checks)):
        report(2 * i - len(lengths), 3 * len(lengths), f"T {T}: forward")
        forward.append(_row(T, make_case(T).forward, rivals, peak, seconds / 2))
        report(2 * i - len(lengths) + 1, 3 * len(lengths), f"T {T}: forward and backward")
        both.append(_row(T, make_case(T).backward, rivals, peak, seconds / 2) | {"target": TARGETS[T]})
    notes = [
        f"B {B}, H {H}, K {K}, V {V}, float32; cotangents of o and of the final state are random.",
        "ratio: time of the fastest other function over ours, medians; best: our fastest round.",
    ]
    if fla is None:
        notes.append("fla-core is not installed: its plain torch function is not among the others.")
    return Findings(
        name="ops",
        ratio=min(number(row, "ratio") / number(row, "target") for row in both),
        target=1.0,
        better="higher",
        details=Details(
            tables={
                "forward": forward,
                "forward and backward": both,
                "largest difference, as a share of the largest entry": checks,
            },
            notes=[*notes, "The headline is the worst ratio of forward and backward over its own target."],
        ),
    )


def _check(T: int, rivals: dict[str, Rule]) -> Row:
    case = make_case(T)
    row: Row = {"T": T, "specification_float64": None}
    if T <= LONGEST_REFERENCE:
        exact = case.to(torch.float64)
        exact.forward(ours)  # a thread's first float64 exponentials are sometimes off by 3e-9, MKL's fault or torch's
        row["specification_float64"] = _difference(T, "the specification", exact, _specification)
    for name, rule in rivals.items():
        row[f"{name.replace(' ', '_')}_float32"] = _difference(T, name, case, rule)
    return row


def _difference(T: int, name: str, case: Case, rule: Rule) -> float:
    """The largest over o and the final state, with and without gradients, and the gradients."""
    results = ("o", "the final state")
    what = (*results, *results, *(f"the gradient of {x}" for x in ("q", "k", "v", "g", "beta")))
    got, wanted = ((*case.forward(one), *case.backward(one)) for one in (ours, rule))
    return max(
        require_equal(mine, its, TOLERANCE[its.dtype], f"at T = {T}, beside {name}, {part}")
        for part, mine, its in zip(what, got, wanted, strict=True)
    )


def _row(T: int, call: Callable[[Rule], object], rivals: dict[str, Rule], peak: Peak, seconds: float) -> Row:
    times = alternate({name: partial(call, rule) for name, rule in {"ours": ours, **rivals}.items()}, seconds=seconds)
    gflops = count_flops(partial(call, ours)) / times["ours"].median / 1e9
    return {
        "T": T,
        **{f"{name.replace(' ', '_')}_ms": 1e3 * timing.median for name, timing in times.items()},
        "best_ms": 1e3 * times["ours"].best,
        "ratio": min(times[name].median for name in rivals) / times["ours"].median,
        "GFLOPS": gflops,
        "%_of_matmul_peak": peak.share(gflops),
    }
