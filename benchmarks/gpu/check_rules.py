"""Every backend of the update rules against the specification, `reverie.ops.reference` in float64 on the same inputs.

Inputs have the number formats in which the model calls the rule: q, k and v that of the activations, gates and fast
weights float32.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from found import Found, apart, failed
from torch import Tensor

from reverie.errors import UserError
from reverie.ops import BACKENDS, RULES, run_rule

# TF32 products are off by some 3e-4 and those of bfloat16 by some 3e-3; gradients take several in a row. A token that
# is lost, or a decay taken twice, is off by 1e-1.
TOLERANCES = {torch.float32: 5e-3, torch.bfloat16: 3e-2}
BATCH = 3
POISON_BYTES = 2**28

Inputs = dict[str, Tensor | None]


class Sizes(NamedTuple):
    name: str
    H: int
    K: int
    V: int
    lengths: tuple[int, ...]  # tokens


class Case(NamedTuple):
    """One call of a rule."""

    T: int
    state: bool = True  # fast weights to start from
    reads: bool = True  # without, only the fast weights are wanted
    decay: Literal["usual", "strong"] = "usual"
    loss_of: Literal["both", "o", "S"] = "both"

    @property
    def label(self) -> str:
        parts = [f"T {self.T}", *["no state"] * (not self.state), *["no output"] * (not self.reads)]
        parts += ["strong decay"] * (self.decay == "strong")
        return ", ".join([*parts, *([] if self.loss_of == "both" else [f"d{self.loss_of} alone"])])


# The fast weights of the paper's Rule 110 model, and of a Jet layer for Ouro 1.4B: two chunks of 64 tokens and a part.
PAPER = (Sizes("Rule 110", 2, 96, 192, (24, 4)), Sizes("Jet", 8, 128, 256, (160, 64, 75)))
SMALL = (Sizes("small", 2, 16, 24, (24, 70)),)


def cases(lengths: tuple[int, ...]) -> Iterator[Case]:
    """Every length with and without fast weights to start from; then what else a model may ask for."""
    longest, shortest = max(lengths), min(lengths)
    yield from (Case(T, state) for T, state in product(lengths, (True, False)))
    yield Case(longest, decay="strong")
    yield Case(shortest, decay="strong")
    yield Case(longest, reads=False, loss_of="S")
    yield Case(shortest, state=False, reads=False, loss_of="S")
    yield Case(longest, loss_of="o")
    yield Case(longest, loss_of="S")


def check_rules(device: torch.device, all_sizes: tuple[Sizes, ...], random: torch.Generator) -> Iterator[Found]:
    """Yield the worst case of each backend, rule, size and format; one line for a backend that is missing."""
    for backend in BACKENDS:
        if backend in ("auto", "reference"):
            continue
        try:
            for sizes, rule, dtype in product(all_sizes, RULES, TOLERANCES):
                short = str(dtype).removeprefix("torch.")
                name = f"{backend}, {rule}, {sizes.name} (H {sizes.H}, K {sizes.K}, V {sizes.V}), {short}"
                yield _worst(name, backend, rule, sizes, dtype, device, random)
        except UserError as error:  # not installed, or not for this device
            yield Found(f"{backend}", why=str(error))


def _worst(
    name: str, backend: str, rule: str, sizes: Sizes, dtype: torch.dtype, device: torch.device, random: torch.Generator
) -> Found:
    worst = Found(name, error=0.0, allowed=TOLERANCES[dtype])
    for case in cases(sizes.lengths):
        inputs = draw(sizes, case, dtype, device, random)
        shapes = (BATCH, case.T, sizes.H, sizes.V), (BATCH, sizes.H, sizes.K, sizes.V)
        slopes = [torch.randn(shape, generator=random).to(device) for shape in shapes]
        double = {key: None if x is None else x.double() for key, x in inputs.items()}
        exact = outcome(rule, double, slopes, case, "reference")
        _poison(device)
        try:
            got = outcome(rule, inputs, slopes, case, backend)
        except UserError:
            raise
        except Exception as error:
            return failed(f"{name}, {case.label}", error)
        for part, wanted in exact.items():
            error = apart(got.get(part), wanted)
            if not error <= (worst.error or 0.0):
                worst = worst._replace(error=error, where=f"{part} ({case.label})")
    return worst


def draw(sizes: Sizes, case: Case, dtype: torch.dtype, device: torch.device, random: torch.Generator) -> Inputs:
    """Keys and queries of norm 1, decays and step sizes all over (0, 1)."""
    B, T, H, K, V = BATCH, case.T, sizes.H, sizes.K, sizes.V

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(device)

    g = -F.softplus(normal(B, T, H) - 2)
    if case.decay == "strong":  # here and there everything is forgotten; e^20 must not come up anywhere
        g = torch.where(normal(B, T, H) < -0.5, -20.0, g)
    return {
        "q": F.normalize(normal(B, T, H, K), dim=-1).to(dtype) if case.reads else None,
        "k": F.normalize(normal(B, T, H, K), dim=-1).to(dtype),
        "v": normal(B, T, H, V).to(dtype),
        "g": g,
        "beta": normal(B, T, H).sigmoid(),
        "initial_state": normal(B, H, K, V) if case.state else None,
    }


def outcome(rule: str, inputs: Inputs, slopes: list[Tensor], case: Case, backend: str) -> dict[str, Tensor]:
    """o, S and the gradient of every input."""
    leaves: Any = {key: None if x is None else x.detach().clone().requires_grad_() for key, x in inputs.items()}
    o, S = run_rule(rule, **leaves, backend=backend)
    parts: dict[str, Any] = {"o": o, "S": S}
    seen = [(parts[name], slope) for name, slope in zip("oS", slopes, strict=True) if case.loss_of in (name, "both")]
    loss: Any = sum((part * slope.to(part.dtype)).sum() for part, slope in seen if part is not None)
    given = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    gradients = torch.autograd.grad(loss, list(given.values()), allow_unused=True)
    parts |= {f"d{name}": x for name, x in zip(given, gradients, strict=True)}
    return {name: x.detach() for name, x in parts.items() if x is not None}


def _poison(device: torch.device) -> None:
    """Leave NaN in the memory that is handed out next: an entry that a kernel does not write shows."""
    if device.type == "cuda":
        torch.full((POISON_BYTES // 4,), float("nan"), device=device)
