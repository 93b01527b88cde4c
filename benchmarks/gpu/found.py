"""Findings of the checks: how far values or gradients are from what they should be."""

from typing import NamedTuple

from torch import Tensor


class Found(NamedTuple):
    """`error` is None where nothing could be compared, and `why` says the reason."""

    name: str
    error: float | None = None
    allowed: float = 0.0
    where: str = ""  # the worst place
    why: str = ""

    @property
    def wrong(self) -> bool:
        return self.error is not None and not self.error <= self.allowed

    def __str__(self) -> str:
        if self.error is None:
            return f"left out  {self.name}: {self.why}"
        place = f" in {self.where}" if self.where else ""
        verdict = "WRONG" if self.wrong else "right"
        return f"{verdict:<9} {self.name}: off by {self.error:.1e}{place}, {self.allowed:g} allowed"


def apart(got: Tensor | None, wanted: Tensor) -> float:
    """‖got − wanted‖ / ‖wanted‖; infinite where there is nothing, another shape, or something that is not a number."""
    if got is None or got.shape != wanted.shape:
        return 0.0 if got is None and not wanted.any() else float("inf")
    difference = (got.detach().double().cpu() - wanted.detach().double().cpu()).norm()
    error = float(difference / wanted.norm().cpu()) if wanted.any() else float(difference)
    return error if error == error else float("inf")


def failed(name: str, error: Exception) -> Found:
    """Record a check that crashed as wrong; the other checks go on."""
    lines = str(error).strip().splitlines() or [""]
    return Found(name, float("inf"), 0.0, f"{type(error).__name__}: {lines[-1]}"[:300])
