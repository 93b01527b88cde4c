"""What a training step costs before it is run: operations, bytes, kernels, and the time below which it cannot go.

    python benchmarks/gpu/roofline.py rule110/paper-t32 --set train.dtype=bfloat16 --passes 1,2,3,4

The floor is all operations at the peak, or the fewest bytes at full bandwidth, whichever takes longer. Those bytes are
of every block run its h, fast weights and parameters, and one write and one read of what the backward needs. The
prediction adds up kernels (`fused_blocks.py`), each with its own operations, bytes and launch: how far it stays below
the floor is what ending kernels at matrix products costs.

Two things are left out: caches, which make it faster (a kernel's output may still be there for the next), and how far
kernels of some 10 µs stay below what large ones reach, which makes it slower.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from fused_blocks import Kernel
from scaling_formulas import (
    FLOAT32,
    Operations,
    Work,
    all_shapes,
    count,
    muon_operations,
    operations,
    optimizer_bytes,
    peak_bytes,
    runs,
)
from step_costs import (
    BFLOAT16,
    Bytes,
    all_kernels,
    eager_launches,
    fewest_bytes,
    fused_kept_bytes,
    optimizer_bytes_moved,
    optimizer_launches,
)

from reverie.errors import UserError
from reverie.recipe import Recipe, changed, load_recipe
from reverie.sleep.labels import count_labels

HEAD_LAUNCHES = 25  # roughly: head and loss, forward and backward
# Of float32's bytes, what runs keep under bfloat16 autocast: measured as 0.76 for Rule 110 and 0.70 for Depo.
AUTOCAST_SHARE = 0.76
EMBEDDING_LAUNCHES = 4  # of a window, forward and backward


@dataclass(frozen=True)
class Ceilings:
    """What a machine reaches on large inputs. The defaults were measured on an H200, but for what a comment says."""

    bfloat16: float = 790e12  # operations a second in matrix products
    tf32: float = 395e12  # half of bfloat16's, as in the data sheet: what products of float32 are run in
    bytes: float = 4.3e12  # a second, read and written
    launch: float = 5e-6  # seconds of an operation called from Python: a guess
    graph_launch: float = 1.5e-6  # of a kernel inside a CUDA graph: a guess

    @classmethod
    def measured(cls, found: Mapping[str, float]) -> Ceilings:
        """From what `machine.ceilings` returns; what it has not measured keeps its default."""
        names = {
            "bfloat16": ("bfloat16_tflops", 1e12),
            "tf32": ("tf32_tflops", 1e12),
            "bytes": ("copy_tb_per_s", 1e12),
            "launch": ("launch_us", 1e-6),
            "graph_launch": ("graph_launch_us", 1e-6),
        }
        return cls(**{field: found[name] * unit for field, (name, unit) in names.items() if name in found})


@dataclass(frozen=True)
class Roofline:
    """One training step of a recipe on one GPU."""

    passes: int
    tokens: int  # of all texts
    parameters: int
    block_runs: int
    operations: Operations
    optimizer_operations: int
    fewest_bytes: Bytes
    fused_bytes: float  # when every kernel reads its inputs and writes its outputs
    eager_launches: int
    fused_launches: int
    compute_seconds: float  # all operations at the peak
    memory_seconds: float  # the fewest bytes at full bandwidth
    fused_seconds: float  # kernel by kernel, launched from a CUDA graph: the prediction
    eager_launch_seconds: float  # what Python takes to launch them
    peak_bytes: float  # of memory, as eager code with the chunked backend keeps it
    fused_peak_bytes: float  # as fused kernels keep it

    @property
    def floor_seconds(self) -> float:
        return max(self.compute_seconds, self.memory_seconds)

    @property
    def share(self) -> float:
        """Of the floor's speed, what is predicted."""
        return self.floor_seconds / self.fused_seconds

    def tokens_per_second(self, seconds: float) -> float:
        return self.tokens / seconds


def roofline(recipe: Recipe, ceilings: Ceilings | None = None) -> Roofline:
    """Counts of a step of the recipe, with `sleep.num_sleep_passes`, and what they mean on such a machine.

    Raises UserError for a model, rule or eviction that the formulas do not know.
    """
    ceilings, work, element = ceilings or Ceilings(), work_of(recipe), _element(recipe)
    peak = ceilings.bfloat16 if element == BFLOAT16 else ceilings.tf32
    shapes, done = all_shapes(work.model), operations(work)
    P, muon = count(shapes), muon_operations(shapes)
    fewest, kernels = fewest_bytes(work, element), list(all_kernels(work, element))
    seconds = sum(_seconds(kernel, peak, ceilings) for kernel in kernels)
    optimizers, optimizer_kernels = optimizer_bytes_moved(work), optimizer_launches(work)
    seconds += muon / ceilings.bfloat16 + optimizers / ceilings.bytes
    others = optimizer_kernels + HEAD_LAUNCHES + EMBEDDING_LAUNCHES * len(work.labelled)
    launches = eager_launches(work, recipe.train.dtype) + optimizer_kernels
    states = FLOAT32 * P + optimizer_bytes(shapes) + (BFLOAT16 * P if element == BFLOAT16 else 0)
    return Roofline(
        passes=work.sleep.num_sleep_passes,
        tokens=work.batch * recipe.task.sequence_length,
        parameters=P,
        block_runs=sum(len(list(run.blocks())) for run in runs(work)),
        operations=done,
        optimizer_operations=muon,
        fewest_bytes=fewest,
        fused_bytes=sum(kernel.bytes for kernel in kernels) + optimizers,
        eager_launches=launches,
        fused_launches=sum(kernel.launches for kernel in kernels) + others,
        compute_seconds=done.total / peak + muon / ceilings.bfloat16,
        memory_seconds=fewest.total / ceilings.bytes,
        fused_seconds=seconds + others * ceilings.graph_launch,
        eager_launch_seconds=launches * ceilings.launch,
        peak_bytes=states + peak_bytes(work),
        fused_peak_bytes=states + FLOAT32 * P + fused_kept_bytes(work, element),
    )


def work_of(recipe: Recipe) -> Work:
    """The first training step of a recipe, in the words of the formulas; labels are those of its data."""
    model, sleep, train = recipe.hybrid, recipe.sleep, recipe.train
    if sleep.eviction != "hard" or model.update_rule != "gated_delta":
        raise UserError(
            "the roofline counts hard eviction and the gated delta rule, "
            f"recipe {recipe.name} has {sleep.eviction} and {model.update_rule}"
        )
    batch = recipe.task.batch("train", train.seed, 0, range(train.batch_size))
    labels = count_labels(batch.loss_mask, sleep.window_size)
    kept = AUTOCAST_SHARE * FLOAT32 if train.dtype == "bfloat16" else FLOAT32
    windows = tuple(number > 0 for number in labels)
    tokens = recipe.task.sequence_length
    return Work(model, sleep, train.backward, train.batch_size, windows, sum(labels), kept, tokens=tokens)


def _seconds(kernel: Kernel, peak: float, ceilings: Ceilings) -> float:
    busy = max(kernel.operations / peak, kernel.bytes / ceilings.bytes)
    return busy + kernel.launches * ceilings.graph_launch


def _element(recipe: Recipe) -> int:
    return BFLOAT16 if recipe.train.dtype == "bfloat16" else FLOAT32


# Tables


def table(recipe: Recipe, found: Sequence[Roofline]) -> Table:
    """Quantities in rows, numbers of passes in columns; in Markdown."""
    title = f"{recipe.name}, {recipe.train.dtype}: one training step of {found[0].tokens:,} tokens"
    shown = Table(title=title, box=box.MARKDOWN, title_justify="left")
    shown.add_column("a step")
    for line in found:
        shown.add_column(f"N = {line.passes}", justify="right")
    for name, value in _rows():
        shown.add_row(name, *(value(line) for line in found))
    return shown


def _rows() -> list[tuple[str, Callable[[Roofline], str]]]:
    ms, gb, tera = 1e3, 1e-9, 1e-12
    return [
        ("block runs", lambda x: f"{x.block_runs:,}"),
        ("forward, TFLOP", lambda x: f"{x.operations.forward * tera:.2f}"),
        ("backward, TFLOP", lambda x: f"{(x.operations.backward + x.operations.recompute) * tera:.2f}"),
        ("Muon, TFLOP", lambda x: f"{x.optimizer_operations * tera:.3f}"),
        ("fewest bytes, forward, GB", lambda x: f"{x.fewest_bytes.forward * gb:.2f}"),
        ("fewest bytes, backward, GB", lambda x: f"{x.fewest_bytes.backward * gb:.2f}"),
        ("fewest bytes, optimisers, GB", lambda x: f"{x.fewest_bytes.optimizers * gb:.2f}"),
        ("bytes of fused kernels, GB", lambda x: f"{x.fused_bytes * gb:.2f}"),
        ("kernels, eager", lambda x: f"{x.eager_launches:,}"),
        ("kernels, fused", lambda x: f"{x.fused_launches:,}"),
        ("operations at the peak, ms", lambda x: f"{x.compute_seconds * ms:.2f}"),
        ("fewest bytes at full bandwidth, ms", lambda x: f"{x.memory_seconds * ms:.2f}"),
        ("floor, ms", lambda x: f"{x.floor_seconds * ms:.2f}"),
        ("fused kernels in a CUDA graph, ms", lambda x: f"{x.fused_seconds * ms:.2f}"),
        ("launches of eager code alone, ms", lambda x: f"{x.eager_launch_seconds * ms:.1f}"),
        ("tokens/s at the floor", lambda x: f"{x.tokens_per_second(x.floor_seconds):,.0f}"),
        ("tokens/s predicted", lambda x: f"{x.tokens_per_second(x.fused_seconds):,.0f}"),
        ("share of the floor", lambda x: f"{100 * x.share:.0f} %"),
        ("peak memory, eager, GB", lambda x: f"{x.peak_bytes * gb:.1f}"),
        ("peak memory, fused, GB", lambda x: f"{x.fused_peak_bytes * gb:.1f}"),
    ]


def main() -> None:
    options = _options()
    recipe, ceilings = load_recipe(options.recipe, options.set), _ceilings(options.ceilings)
    passes = options.passes or [recipe.sleep.num_sleep_passes]
    found = [roofline(changed(recipe, sleep={"num_sleep_passes": N}), ceilings) for N in passes]
    Console(width=100).print(table(recipe, found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="name of a shipped recipe, or path of a .toml file")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override, repeatable")
    parser.add_argument("--passes", type=_numbers, help="numbers of sleep passes, as 1,2,4; the recipe's if absent")
    parser.add_argument("--ceilings", type=Path, help="JSON of what machine.py measured; an H200's if absent")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers with commas between them, like 1,2,4, got {text}") from None


def _ceilings(path: Path | None) -> Ceilings:
    """From a JSON object like that of `machine.ceilings`, or a card with one under "ceilings"."""
    if path is None:
        return Ceilings()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Ceilings.measured(found.get("ceilings", found))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"--ceilings must be a JSON file of measured ceilings, {path} is not: {error}") from None


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
