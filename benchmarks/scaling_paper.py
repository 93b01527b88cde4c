"""The formulas at 1.4B, 8B and 70B on 8 and 1,024 GPUs: what fits, what a step takes, and how one would share it out.

Nothing here is measured. The machine is an assumption from data sheets, and so is what of it can be used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from scaling_traffic import Traffic, context_parallel, ddp, fsdp, pipeline_slots, tensor_parallel

from reverie.bench.account import (
    FLOAT32,
    Run,
    Work,
    again_bytes,
    block_shapes,
    count,
    fast_weight_bytes,
    hidden_matrices,
    kept_bytes,
    muon_operations,
    newton_schulz_operations,
    operations,
    optimizer_bytes,
    parameter_shapes,
    run_bytes,
    runs,
)
from reverie.model import HybridConfig
from reverie.model.config import BlockKind
from reverie.sleep import SleepConfig
from reverie.sleep.gradients import Backward

# Assumptions: H100 SXM, eight to a node, a 400 Gb/s network card for each.
PEAK_OPERATIONS = 989e12  # a second, bfloat16, dense
USED = 0.4  # of the peak, by what a step computes
MEMORY = 80e9  # bytes
LARGER_MEMORY = 141e9  # of an H200
NVLINK, NETWORK = 450e9, 50e9  # bytes a second, in each direction, for each GPU
HOP = 3e-6  # seconds that a ring takes to pass on, whatever the size: a guess, no data sheet has it
NODE = 8
BFLOAT16 = 2  # bytes
# Of float32's bytes, what runs keep under bfloat16 autocast: scaling.py measures it.
AUTOCAST_SHARE = 0.68

WINDOWS, PASSES = 16, 4
CLUSTERS = ((8, 8), (1024, 1024), (1024, 128))  # GPUs, texts a step


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


@dataclass(frozen=True)
class Strategy:
    """How a step is shared out. `degree` GPUs of a node work on the same texts; the others have texts of their own."""

    name: str
    shards: Literal["none", "step", "run", "node"]  # gathered once a step; for every run; for every run, in a node
    split: Literal["data", "tensor", "pipeline", "context"] = "data"
    degree: int = 1


STRATEGIES = (
    Strategy("DDP", "none"),
    Strategy("FSDP", "step"),
    Strategy("FSDP, every run", "run"),
    Strategy("FSDP, every run, in nodes", "node"),
    Strategy("tensor 8 + FSDP", "run", "tensor", 8),
    Strategy("pipeline 8 + FSDP", "run", "pipeline", 8),
    Strategy("context 8 + FSDP", "run", "context", 8),
)


def work_of(name: str, texts: int, mode: Mode, tensor: int = 1) -> Work:
    """W − 1 windows asleep and a last one in which every position is labelled."""
    model, window = MODELS[name]
    sleep = SleepConfig(window_size=window, num_sleep_passes=PASSES)
    labelled = (False,) * (WINDOWS - 1) + (True,)
    element = AUTOCAST_SHARE * FLOAT32
    return Work(model, sleep, Backward(activation_checkpoint=mode), texts, labelled, texts * window, element, tensor)


def everything() -> dict[str, Any]:
    """The paper part of the card."""
    rows = [row for name in MODELS for gpus, texts in CLUSTERS for row in plans(name, gpus, texts)]
    return {
        "assumptions": {
            "operations a second, peak (bfloat16)": PEAK_OPERATIONS,
            "share of the peak that is used": USED,
            "bytes of memory": MEMORY,
            "bytes of memory, H200": LARGER_MEMORY,
            "NVLink, bytes a second and direction": NVLINK,
            "network, bytes a second and GPU": NETWORK,
            "seconds a ring takes for each of its GPUs": HOP,
            "GPUs in a node": NODE,
        },
        "texts": {name: _text(name) for name in MODELS},
        "plans": rows,
    }


def _text(name: str) -> dict[str, float]:
    """What one text takes."""
    works = {mode: work_of(name, 1, mode) for mode in MODES}
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
        "bytes, DDP reduces": ddp(work).reduced,
        "bytes, FSDP gathers, once": fsdp(work, NODE, once=True).gathered,
        "bytes, FSDP gathers, every run (bfloat16)": fsdp(work, NODE, gathered=BFLOAT16).gathered,
        "bytes, tensor parallel reduces": tensor_parallel(works["pass"], BFLOAT16).reduced,
        "operations, Muon": muon_operations(work.model),
    }


def choice(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The fastest that fits; on the larger memory if none does on the smaller."""
    for limit in (MEMORY, LARGER_MEMORY):
        if fitting := [row for row in rows if row["bytes"] <= limit]:
            return min(fitting, key=lambda row: row["step"])
    return None


def plans(name: str, gpus: int, texts: int) -> list[dict[str, Any]]:
    """What each strategy takes, where every GPU has something to do; one row each."""
    rows = []
    for strategy in STRATEGIES:
        if texts * strategy.degree < gpus or (strategy.shards == "node" and gpus == NODE):
            continue
        candidates = [plan(name, gpus, texts, strategy, mode) for mode in MODES]
        fitting = [row for limit in (MEMORY, LARGER_MEMORY) for row in candidates if row["bytes"] <= limit]
        # The least recomputation that fits; where nothing does, what takes the least.
        rows.append(fitting[0] if fitting else min(candidates, key=lambda row: row["bytes"]))
    return rows


def plan(name: str, gpus: int, texts: int, strategy: Strategy, mode: Mode) -> dict[str, Any]:
    """Bytes on a GPU, and seconds of a step: gathers go on beside the computation, everything else in turn."""
    group = texts * strategy.degree // gpus  # texts of the GPUs that work together
    work = work_of(name, group, mode, strategy.degree if strategy.split == "tensor" else 1)
    compute = operations(work).total / strategy.degree / (USED * PEAK_OPERATIONS)
    if strategy.split == "pipeline":
        trips = (WINDOWS - 1) * PASSES + 1
        compute *= pipeline_slots(strategy.degree, group, trips) / (group * trips)
    gathers, rest = _traffic_seconds(work, gpus, strategy)
    newton_schulz = _newton_schulz_seconds(work, gpus, strategy)
    states, activations = _state_bytes(work, gpus, strategy), _activation_bytes(work, strategy)
    return {
        "model": name,
        "gpus": gpus,
        "texts": texts,
        "strategy": strategy.name,
        "mode": mode,
        "bytes": states + activations,
        "states": states,
        "activations": activations,
        "seconds": {"computing": compute, "gathers": gathers, "other traffic": rest, "Muon": newton_schulz},
        "step": max(compute, gathers) + rest + newton_schulz,
    }


def _state_bytes(work: Work, gpus: int, strategy: Strategy) -> float:
    """Parameters, gradients and optimiser, and what of them is whole during a step.

    Gradients are whole whatever the strategy: each is a sum over all runs of its block, complete at the end alone.
    """
    shapes = parameter_shapes(work.model)
    P, all_states = count(shapes), 2 * FLOAT32 * count(shapes) + optimizer_bytes(work.model)
    if strategy.shards == "none":
        return all_states + BFLOAT16 * P  # autocast's copies
    if strategy.shards == "step":
        return all_states / gpus + (2 * FLOAT32 + BFLOAT16) * P
    gathered = P  # to make a run again, FSDP2 gathers all of its blocks
    if work.backward.activation_checkpoint == "none":
        blocks = [count(block_shapes(shapes, i)) for i in range(len(work.model.layers))]
        gathered = P - sum(blocks) + 2 * max(blocks)
    shards = NODE if strategy.shards == "node" else gpus
    parts = strategy.degree if strategy.split in ("tensor", "pipeline") else 1
    return all_states / shards + BFLOAT16 * (P + gathered) / parts


def _activation_bytes(work: Work, strategy: Strategy) -> float:
    again = again_bytes(work) if work.backward.activation_checkpoint != "none" else 0.0
    if strategy.split == "pipeline":  # of all texts what is kept, of one at a time what is made again
        return (kept_bytes(work) + again / work.batch) / strategy.degree
    return (kept_bytes(work) + again) / (strategy.degree if strategy.split == "context" else 1)


def _traffic_seconds(work: Work, gpus: int, strategy: Strategy) -> tuple[float, float]:
    """Gathers of parameters, which can go on beside the computation, and all other traffic."""
    if strategy.shards == "none":
        return 0.0, _seconds(ddp(work), gpus, NODE)
    if strategy.shards == "step":
        return _apart(fsdp(work, gpus, once=True), gpus, NODE)
    parts = strategy.degree if strategy.split in ("tensor", "pipeline") else 1
    ranks = NODE if strategy.shards == "node" else gpus // parts
    near = 1 if strategy.split == "tensor" else NODE  # GPUs of a node among them
    traffic = fsdp(work, ranks, gathered=BFLOAT16)
    traffic = traffic._replace(gathered=traffic.gathered // parts, scattered=traffic.scattered // parts)
    if strategy.split == "pipeline":
        traffic = traffic._replace(collectives=traffic.collectives // parts)
    gathers, rest = _apart(traffic, ranks, near)
    if strategy.shards == "node":  # what a GPU has scattered to it, all nodes reduce
        rest += _seconds(Traffic(reduced=traffic.scattered // NODE, collectives=1), gpus // NODE, 1)
    if strategy.split == "tensor":
        rest += _seconds(tensor_parallel(work, BFLOAT16), strategy.degree, NODE)
    if strategy.split == "context":
        rest += _seconds(context_parallel(work, BFLOAT16), strategy.degree, NODE)
    return gathers, rest


def _apart(traffic: Traffic, ranks: int, near: int) -> tuple[float, float]:
    """Seconds of gathers, and of what can only be sent when the backward is over."""
    gathers = traffic._replace(scattered=0)
    return _seconds(gathers, ranks, near), _seconds(Traffic(scattered=traffic.scattered), ranks, near)


def _seconds(traffic: Traffic, ranks: int, near: int) -> float:
    """Time of rings over `ranks` GPUs, `near` of them in each node, whose network cards they share out."""
    speed = NVLINK if ranks <= near else min(NVLINK, near * NETWORK)
    return traffic.sent(ranks) / speed + traffic.collectives * (ranks - 1) * HOP


def _newton_schulz_seconds(work: Work, gpus: int, strategy: Strategy) -> float:
    """DDP does all of it everywhere; FSDP in rounds of as many matrices as there are GPUs."""
    costs = [newton_schulz_operations(shape) for shape in hidden_matrices(work.model).values()]
    if strategy.shards != "none":
        costs = [max(costs[first : first + gpus]) for first in range(0, len(costs), gpus)]
    return sum(costs) / (USED * PEAK_OPERATIONS)
