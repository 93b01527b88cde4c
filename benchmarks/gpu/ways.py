"""Ways to compute the same run: which kernels, compiled or not, as a CUDA graph or not, and what is kept for backward.

A way changes time and memory, not the function; so it is chosen on the machine, by measurement, among those that pass
the checks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from reverie.model import HybridConfig
from reverie.ops import dispatch
from reverie.recipe import Recipe, TrainConfig, changed

ONE_CHUNK = 64  # tokens of a window that "triton" takes in one kernel: nothing installed is faster
ACTIVATION_CHECKPOINTS = ("none", "pass", "window")  # from fastest to smallest
KERNELS = ("triton", "fla")
NOT_CANDIDATES = ("auto", "reference")
MANY_CHUNKS = 512  # tokens of a window, from which on "chunked" takes minutes to compile, a step for each chunk


@dataclass(frozen=True)
class Way:
    """How a run is computed; `backend` is None for models that do not let it be chosen."""

    backend: str | None
    compile: bool
    cuda_graph: bool
    activation_checkpoint: str = "none"

    @property
    def name(self) -> str:
        mode = {
            (True, True): "compiled CUDA graph",
            (True, False): "compiled",
            (False, True): "eager CUDA graph",
            (False, False): "eager",
        }[self.compile, self.cuda_graph]
        kept = "" if self.activation_checkpoint == "none" else f", checkpoint a {self.activation_checkpoint}"
        return f"{self.backend or 'own kernels'}, {mode}{kept}"

    @property
    def simpler(self) -> Way | None:
        """What to fall back to when this way fails: without the graph, then without compiling."""
        if self.cuda_graph:
            return replace(self, cuda_graph=False)
        return replace(self, compile=False) if self.compile else None

    @property
    def smaller(self) -> Way | None:
        """What to fall back to when memory runs out."""
        rank = ACTIVATION_CHECKPOINTS.index(self.activation_checkpoint)
        return replace(self, activation_checkpoint=after) if (after := next_to(rank)) else None

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe, computed this way."""
        train: dict[str, Any] = {"compile": self.compile, "activation_checkpoint": self.activation_checkpoint}
        if self.cuda_graph or "cuda_graph" in TrainConfig.model_fields:
            train["cuda_graph"] = self.cuda_graph
        return changed(recipe, train=train, **({} if self.backend is None else {"model": {"backend": self.backend}}))


def next_to(rank: int) -> str | None:
    return ACTIVATION_CHECKPOINTS[rank + 1] if rank + 1 < len(ACTIVATION_CHECKPOINTS) else None


def backends_of(recipe: Recipe) -> list[str | None]:
    """What may run the fast weights of this recipe's model, installed or not."""
    if not hasattr(recipe.model, "backend"):
        return [None]
    return [*KERNELS, *(name for name in dispatch.BACKENDS if name not in (*NOT_CANDIDATES, *KERNELS))]


def ways_of(recipe: Recipe, device: torch.device, backends: list[str | None]) -> list[Way]:
    """All ways with these backends that may be the fastest. The eager ones of the first backend lead: they start at
    once, so that there is a way whatever becomes of the others; then those probably fast; on a CPU none is compiled."""
    kept = recipe.train.activation_checkpoint
    can_compile = device.type == "cuda"
    whole = getattr(recipe.train, "micro_batch", None) is None
    can_graph = can_compile and whole and isinstance(recipe.model, HybridConfig)
    order = _worth_trying(backends, recipe.sleep.window_size)
    first, others = order[:1], order[1:]
    # A graph is checked against the same way without it, which therefore comes first.
    graphs = (False, True) if can_graph else (False,)

    def of(names: list[str | None], *, compiled: bool) -> list[Way]:
        return [Way(name, compiled, graph, kept) for name in names for graph in graphs if can_compile or not compiled]

    return [
        *of(first, compiled=False),
        *of(order, compiled=True),
        *of(others, compiled=False),
    ]


def _worth_trying(backends: list[str | None], window: int) -> list[str | None]:
    """Probably fastest first, without "chunked" where it cannot win or would take minutes to compile."""
    order: list[str | None] = [name for name in KERNELS if name in backends]
    if ("triton" in order and window <= ONE_CHUNK) or (order and window > MANY_CHUNKS):
        return order
    return order + [name for name in backends if name not in KERNELS]


def way_of(recipe: Recipe) -> Way:
    """How a recipe is computed as it stands."""
    train = recipe.train
    return Way(
        getattr(recipe.model, "backend", None),
        train.compile,
        bool(getattr(train, "cuda_graph", False)),
        train.activation_checkpoint,
    )


def same_run(a: Recipe, b: Recipe) -> bool:
    """Whether two recipes differ in the way alone."""
    return way_of(b).applied(a) == b
