"""What training with sleep costs at 1.4B, 8B and 70B parameters, by the formulas of `reverie.bench.account`.

    python benchmarks/scaling.py --out results/scaling.json

computes what one text takes, leaves a card, and prints the table of docs/SCALING.md. Nothing here is measured: tests
compare the formulas with what small models do.
"""

from typing import Any, Literal

import publish

from reverie.bench.account import (
    FLOAT32,
    Run,
    Work,
    again_bytes,
    block_shapes,
    count,
    fast_weight_bytes,
    kept_bytes,
    muon_operations,
    operations,
    parameter_shapes,
    run_bytes,
    runs,
)
from reverie.bench.tables import markdown_table
from reverie.model import HybridConfig
from reverie.model.config import BlockKind
from reverie.sleep import SleepConfig
from reverie.sleep.gradients import Backward

BFLOAT16 = 2  # bytes
# Of float32's bytes, what runs keep under bfloat16 autocast, as a test measures.
AUTOCAST_SHARE = 0.68
WINDOWS, PASSES = 16, 4


def _model(blocks: int, width: int, mlp_width: int, heads: int, kv_heads: int, vocab_size: int) -> HybridConfig:
    """Every fourth block a Gated DeltaNet, whose keys take 3/4 of the width."""
    pattern: tuple[BlockKind, ...] = ("attn", "attn", "attn", "gdn")
    return HybridConfig(
        vocab_size=vocab_size,
        width=width,
        layers=pattern * (blocks // 4),
        mlp_width=mlp_width,
        num_heads=heads,
        num_kv_heads=kv_heads,
        fast_heads=3 * width // 512,
        key_size=128,
        value_size=256,
    )


# Sizes of Ouro 1.4B, Llama 3 8B and 70B, and their windows.
MODELS = {
    "1.4B": (_model(24, 2048, 5632, 16, 16, 49_152), 2048),
    "8B": (_model(32, 4096, 14_336, 32, 8, 128_256), 4096),
    "70B": (_model(80, 8192, 28_672, 64, 8, 128_256), 4096),
}

Mode = Literal["none", "pass", "window"]
MODES: tuple[Mode, ...] = ("none", "pass", "window")


def work_of(name: str, mode: Mode) -> Work:
    """One text: W − 1 windows asleep and a last one in which every position is labelled."""
    model, window = MODELS[name]
    sleep = SleepConfig(window_size=window, num_sleep_passes=PASSES)
    labelled = (False,) * (WINDOWS - 1) + (True,)
    return Work(model, sleep, Backward(activation_checkpoint=mode), 1, labelled, window, AUTOCAST_SHARE * FLOAT32)


def text(name: str) -> dict[str, float]:
    """Memory, computation and traffic of one text, by name."""
    works = {mode: work_of(name, mode) for mode in MODES}
    work, costs = works["none"], {mode: operations(work) for mode, work in works.items()}
    return {
        "parameters": count(parameter_shapes(work.model)),
        "tokens": work.window_tokens * WINDOWS,
        "block runs": sum(len(list(run.blocks())) for run in runs(work)),
        "operations, forward": costs["none"].forward,
        "operations, backward": costs["none"].backward,
        "operations made again, pass": costs["pass"].recompute,
        "operations made again, window": costs["window"].recompute,
        "bytes kept, none": kept_bytes(works["none"]),
        "bytes kept, pass": kept_bytes(works["pass"]),
        "bytes kept, window": kept_bytes(works["window"]),
        "bytes of one pass": again_bytes(works["pass"]),
        "bytes of one block in one pass": max(run_bytes(work, Run(0, i, i + 1, True, True)) for i in range(4)),
        "bytes of fast weights": fast_weight_bytes(work),
        "bytes, tensor parallel reduces": tensor_parallel(works["pass"]),
        "bytes, FSDP gathers, every run (bfloat16)": gathered_every_run(work),
        "operations, Muon": muon_operations(work.model),
    }


def gathered_every_run(work: Work) -> int:
    """Bytes that FSDP gathers as usual: a block's parameters for each of its runs, forward and backward."""
    shapes = parameter_shapes(work.model)
    blocks = [count(block_shapes(shapes, i)) for i in range(len(work.model.layers))]
    uses = sum(blocks[i] for run in runs(work) for _ in range(1 + run.trained) for i, _ in run.blocks())
    return BFLOAT16 * (count(shapes) - sum(blocks) + uses)


def tensor_parallel(work: Work) -> int:
    """Bytes reduced: [B, L, D] twice in a block's forward and in its backward; once in all for fast weights alone."""
    reductions, again = 0, work.backward.activation_checkpoint
    for run in runs(work):
        for _, output in run.blocks():
            forward, backward = (2, 2) if output else (0, 1)
            repeats = {"none": 0, "pass": 1, "window": 2}[again] if run.trained else 0
            reductions += forward * (1 + repeats) + backward * run.trained
    return reductions * BFLOAT16 * work.window_tokens * work.model.width


def table(card: dict[str, Any]) -> str:
    """What a text takes, a column for each model."""
    texts = card["paper"]["texts"]
    rows = [[name, *(_short(text[name]) for text in texts.values())] for name in next(iter(texts.values()))]
    return markdown_table(["a text", *texts], rows)


def _short(value: float) -> str:
    """1.49e+09 as 1.49 G."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


def main() -> None:
    arguments, origin = publish.options(__doc__).parse_args(), publish.begin()
    card = {"kind": "scaling", "name": "scaling", **origin(), "paper": {"texts": {name: text(name) for name in MODELS}}}
    publish.publish(arguments, card, table, lambda card: card["paper"]["texts"])


if __name__ == "__main__":
    publish.run(main)
