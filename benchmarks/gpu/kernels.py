"""Every backend of the fast weights against the specification, before any time is taken: values and all gradients.

The specification is `reverie.ops.reference` in float64, on the very inputs that the backend gets. Inputs are drawn anew
each time, in the number formats in which the model calls the rule: q, k and v in the activations' format, gates and
state in float32. An error is ‖out − ref‖ / ‖ref‖; what is not a number never passes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from reverie.errors import UserError
from reverie.model.fast_weights import RULES
from reverie.recipe import Recipe

# Products in TF32 (the matrix units' float32 mode) are off by some 3e-4, of bfloat16 operands by some 3e-3; gradients
# take several in a row. A token that is lost, or a decay taken twice, is off by 1e-1. Both formats, since training may
# run in bfloat16, and evaluation runs in float32.
TOLERANCES = {torch.float32: 5e-3, torch.bfloat16: 3e-2}
JET_NEMOTRON = (12, 96, 256)  # H, K, V where a pretrained model's recipe leaves them open
LONGEST = 160  # tokens: kernels take chunks of 64, over and over; two of them and a part show all that more would
POISON_BYTES = 2**28
BATCH = 3


class Sizes(NamedTuple):
    """Of a recipe's fast weights: heads, keys, values, and the lengths of its windows."""

    rule: str
    H: int
    K: int
    V: int
    lengths: tuple[int, ...]  # whole windows, the last one if shorter, an odd length


class Case(NamedTuple):
    T: int
    dtype: torch.dtype
    state: bool  # whether there are fast weights to start from
    reads: bool  # without, only the state is wanted
    decay: Literal["usual", "strong"]
    cotangent: Literal["both", "o", "S"]  # what the loss depends on

    @property
    def label(self) -> str:
        parts = [f"T {self.T}", str(self.dtype).removeprefix("torch."), "state" if self.state else "no state"]
        return ", ".join([*parts, *([] if self.reads else ["no output"]), f"{self.decay} decay", f"d{self.cotangent}"])


def sizes_of(recipe: Recipe) -> Sizes:
    """The shapes in which a recipe calls the rule."""
    model: Any = recipe.model
    window, length = recipe.sleep.window_size, recipe.task.sequence_length
    L = min(window, LONGEST)
    odd = L - 1 if L % 2 == 0 else max(L - 2, 1)
    lengths = {min(L, length), min(length % window or L, L), odd}
    given = (model.fast_heads, model.key_size, model.value_size)
    H, K, V = (size or usual for size, usual in zip(given, JET_NEMOTRON, strict=True))
    return Sizes(getattr(model, "update_rule", "gated_delta"), H, K, V, tuple(sorted(lengths, reverse=True)))


def cases_of(sizes: Sizes) -> list[Case]:
    """Every length with and without state; then strong decay, no output, and losses that see one result alone."""
    longest, odd = sizes.lengths[0], next((T for T in sizes.lengths if T % 2), 1)
    kinds = [
        *(Case(T, torch.float32, state, True, "usual", "both") for T, state in product(sizes.lengths, (True, False))),
        Case(odd, torch.float32, True, True, "strong", "both"),
        Case(longest, torch.float32, True, True, "strong", "both"),
        Case(longest, torch.float32, True, False, "usual", "S"),
        Case(odd, torch.float32, False, False, "usual", "S"),
        Case(longest, torch.float32, True, True, "usual", "o"),
        Case(odd, torch.float32, False, True, "usual", "S"),
    ]
    return [case._replace(dtype=dtype) for dtype in TOLERANCES for case in kinds]


def reference_numbers(sizes: Sizes) -> int:
    """That the specification of the longest case keeps, in float64, for its backward: it goes token by token."""
    B, T = BATCH, max(sizes.lengths)
    return 3 * B * T * sizes.H * (sizes.K * sizes.V + 2 * sizes.K + sizes.V)


def check_backend(backend: str, sizes: Sequence[Sizes], device: torch.device) -> dict[str, Any]:
    """Whether a backend computes the rule: {"backend", "passed", "why", "seed", "rows"}.

    It never raises for what the backend does; "why" then says what was wrong first.
    """
    seed = random.SystemRandom().randrange(2**31)
    found: dict[str, Any] = {"backend": backend, "passed": False, "why": None, "seed": seed, "rows": []}
    generator = torch.Generator().manual_seed(seed)
    for size in sizes:
        for case in cases_of(size):
            try:
                row = _check(backend, size, case, device, generator)
            except UserError as error:  # not installed, or not for this device or these shapes
                return {**found, "why": str(error)}
            except Exception as error:
                reason = (str(error).strip().splitlines() or [""])[-1]
                return {**found, "why": f"{case.label}: {type(error).__name__}: {reason}"}
            found["rows"].append(row)
            if not row["error"] <= row["tolerance"]:
                off = f"{row['worst']} is off by {row['error']:.1e}, where {row['tolerance']:.0e} is allowed"
                return {**found, "why": f"{case.label}: {off}"}
    return {**found, "passed": True}


def _check(backend: str, sizes: Sizes, case: Case, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    inputs = _draw(sizes, case, generator)
    cotangents = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in _result_shapes(inputs)]
    # On the device: on a CPU the specification of a long window takes minutes, and there are some 20 cases.
    exact = {name: None if x is None else x.to(device, torch.float64) for name, x in inputs.items()}
    wanted = {name: x.cpu() for name, x in _outcome(sizes.rule, exact, cotangents, case, "reference").items()}
    del exact
    _poison(device)
    got = _outcome(sizes.rule, {k: _to(x, device) for k, x in inputs.items()}, cotangents, case, backend)
    errors = {name: _error(got.get(name), x) for name, x in wanted.items()}
    worst = max(errors, key=lambda name: errors[name])
    size = {"H": sizes.H, "K": sizes.K, "V": sizes.V}
    return size | {"case": case.label, "worst": worst, "error": errors[worst], "tolerance": TOLERANCES[case.dtype]}


def _draw(sizes: Sizes, case: Case, generator: torch.Generator) -> dict[str, Tensor | None]:
    """On the CPU, in the formats in which the model calls the rule."""
    B, T, H, K, V = BATCH, case.T, sizes.H, sizes.K, sizes.V

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    g = -F.softplus(normal(B, T, H) - 2)
    if case.decay == "strong":  # here and there everything is forgotten; e^20 must not come up anywhere
        g = torch.where(torch.rand(B, T, H, generator=generator) < 0.3, torch.full_like(g, -20.0), g)
    return {
        "q": F.normalize(normal(B, T, H, K), dim=-1).to(case.dtype) if case.reads else None,
        "k": F.normalize(normal(B, T, H, K), dim=-1).to(case.dtype),
        "v": normal(B, T, H, V).to(case.dtype),
        "g": g.float(),
        "beta": normal(B, T, H).sigmoid().float(),
        "initial_state": normal(B, H, K, V).float() if case.state else None,
    }


def _result_shapes(inputs: dict[str, Tensor | None]) -> list[torch.Size]:
    """Of o and S."""
    k, v = inputs["k"], inputs["v"]
    assert k is not None
    assert v is not None
    return [v.shape, torch.Size([len(k), k.shape[2], k.shape[3], v.shape[3]])]


def _outcome(
    rule: str, inputs: dict[str, Tensor | None], cotangents: list[Tensor], case: Case, backend: str
) -> dict[str, Tensor]:
    """o, S and the gradient of every input, under a random cotangent."""
    leaves: Any = {k: None if x is None else x.detach().clone().requires_grad_() for k, x in inputs.items()}
    o, S = RULES[rule](**leaves, backend=backend)
    parts = {"o": o, "S": S}
    seen = [(parts[name], c) for name, c in zip("oS", cotangents, strict=True) if case.cotangent in (name, "both")]
    loss = sum((part * c.to(part.device, part.dtype)).sum() for part, c in seen if part is not None)
    given = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    assert isinstance(loss, Tensor)
    gradients = torch.autograd.grad(loss, list(given.values()), allow_unused=True)
    results = {**parts, **{f"d{name}": x for name, x in zip(given, gradients, strict=True)}}
    return {name: x.detach() for name, x in results.items() if x is not None}


def _error(got: Tensor | None, wanted: Tensor) -> float:
    """‖got − wanted‖ / ‖wanted‖; infinite where there is nothing, another shape, or something that is not a number."""
    if got is None or got.shape != wanted.shape:
        return 0.0 if got is None and not wanted.any() else float("inf")
    difference = (got.double().cpu() - wanted).norm()
    error = float(difference / wanted.norm()) if wanted.any() else float(difference)
    return error if error == error else float("inf")


def _poison(device: torch.device) -> None:
    """Memory that is handed out next holds NaN: an entry that a kernel does not write shows."""
    if device.type == "cuda":
        torch.full((POISON_BYTES // 4,), float("nan"), device=device)


def _to(x: Tensor | None, device: torch.device) -> Tensor | None:
    return None if x is None else x.to(device)
