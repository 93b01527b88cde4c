"""What a training step of a pretrained model costs, counted without computing anything, and the time that predicts.

    python benchmarks/gpu/gsm_counts.py gsm_infinite/smollm2 --set train.batch_size=64 --passes 1,2,4

runs the step on tensors without content (PyTorch's fake tensors), notes operations, bytes and memory of every kernel
that it would launch, and adds up predicted times: matrix kernels by their operations, all others by their bytes.
"""

from __future__ import annotations

import argparse
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from reverie.errors import UserError
from reverie.recipe import Recipe, changed, load_recipe
from reverie.recipe.build import build_model
from reverie.sleep import rollout_hidden
from reverie.sleep.labels import labelled_windows
from reverie.train.schedule import Schedule

FLOPS, BYTES_S = 790e12, 4.3e12  # measured on an H200: bfloat16 products of 8192, and copies
# What a model of width 576 gets of them: small products; kernels of 10 µs; attention with heads of 64.
PRODUCTS, COPIES, ATTENTION = 0.6, 0.85, 0.45
# Of the bytes of a block's small steps, the share that is left when they are compiled into a few kernels: by hand, for
# a Llama block, 115 of 640 bytes a token and channel, forward and backward.
FUSED = 0.18
LABELS = 4  # a row: space, digits, end


@dataclass
class Counts:
    """Of forward and backward of some rows; the optimisers are not in it."""

    products: float = 0.0  # operations
    attention: float = 0.0
    small_bytes: float = 0.0  # of kernels that are neither
    kernels: int = 0
    kept: int = 0  # bytes alive between forward and backward
    peak: int = 0

    def seconds(self, *, fused: bool) -> float:
        """On an H200."""
        small = self.small_bytes * (FUSED if fused else 1) / (COPIES * BYTES_S)
        return self.products / (PRODUCTS * FLOPS) + self.attention / (ATTENTION * FLOPS) + small


class Account(TorchDispatchMode):
    """Notes what every kernel does, and which storages are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.counts, self.live = Counts(), 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        read, written = ([x for x in tree_leaves(tree) if isinstance(x, Tensor)] for tree in ((args, kwargs), out))
        known = {x.untyped_storage()._cdata for x in read}
        fresh = any(x.untyped_storage()._cdata not in known for x in written)
        for x in written:
            self._alive(x.untyped_storage())
        name = func._overloadpacket.__name__
        if fresh or name.endswith("_"):  # else it is a view
            self._note(func, name, args, kwargs, out, sum(x.numel() * x.element_size() for x in (*read, *written)))
        return out

    def _note(self, func: Any, name: str, args: Any, kwargs: Any, out: Any, num_bytes: int) -> None:
        counts = self.counts
        counts.kernels += 1
        if name.startswith("_scaled_dot_product"):
            counts.attention += _attention(name, args, kwargs)
        elif func._overloadpacket in flop_registry:
            counts.products += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        elif not name.startswith(("empty", "new_empty")):
            counts.small_bytes += num_bytes

    def _alive(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.counts.peak = max(self.counts.peak, self.live)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


def _attention(name: str, args: Sequence[Any], kwargs: Any) -> float:
    """Operations: two products forward, five backward; half of them where it is causal, which kernels know."""
    backward = "backward" in name
    q, k = args[1:3] if backward else args[:2]
    B, H, T, d = q.shape
    products = 5 if backward else 2
    causal = any(x is True for x in (*args, *kwargs.values()))
    return products * 2.0 * B * H * T * k.shape[2] * d * (0.5 if causal else 1)


def count(recipe: Recipe, rows: int) -> Counts:
    """Of a step's forward and backward over so many rows, under the last stage's eviction."""
    model = build_model(recipe.model, 0)
    T, last = recipe.task.sequence_length, recipe.train.steps - 1
    sleep = Schedule(recipe, last)
    mask = torch.zeros(1, T, dtype=torch.bool)
    mask[:, -LABELS:] = True
    labelled = labelled_windows(mask, sleep.window_size)
    with FakeTensorMode(), Account() as account:
        _empty(model)
        tokens = torch.zeros(rows, T, dtype=torch.long)
        before = account.live
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.train.dtype == "bfloat16"):
            h, _ = rollout_hidden(model, tokens, sleep, labelled, backward=recipe.train.backward)
            logits = model.head(h[:, -LABELS:])
        targets = torch.zeros(rows * LABELS, dtype=torch.long)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets, reduction="sum")
        account.counts.kept = account.live - before
        loss.backward()
    return account.counts


def _empty(model: nn.Module) -> None:
    """Parameters and buffers without content, those that were one staying one."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = made.setdefault(id(p), nn.Parameter(torch.empty(p.shape, dtype=p.dtype)))
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = torch.empty(b.shape, dtype=b.dtype)


def table(recipe: Recipe, passes: Sequence[int]) -> Table:
    """By number of passes and what is kept for the backward; memory for the rows of a micro-batch."""
    found = Table(title=f"{recipe.name}, L = {recipe.sleep.window_size}, {recipe.train.batch_size} rows a step")
    names = ("N", "kept for backward", "GiB a row", "TFLOP a row", "GB moved a row", "s a step, eager", "s, compiled")
    for name in names:
        found.add_column(name, justify="right")
    for n in passes:
        for checkpoint in ("none", "pass", "window"):
            changes = {"sleep": {"num_sleep_passes": n}, "train": {"activation_checkpoint": checkpoint}}
            one, two = (count(changed(recipe, **changes), rows) for rows in (1, 2))
            row = Counts(*(b - a for a, b in zip(vars(one).values(), vars(two).values(), strict=True)))
            times = (recipe.train.batch_size * row.seconds(fused=fused) for fused in (False, True))
            operations = (row.products + row.attention) / 1e12
            cells = (row.peak / 2**30, operations, row.small_bytes / 1e9, *times)
            found.add_row(str(n), checkpoint, *(f"{cell:.2f}" for cell in cells))
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--passes", default="1,2,4")
    given = parser.parse_args(arguments)
    try:
        recipe = load_recipe(given.recipe, given.set)
        Console(width=120).print(table(recipe, [int(n) for n in given.passes.split(",")]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
