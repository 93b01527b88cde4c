"""What a training step must do, counted before it is run: operations, bytes, and the time and memory they take.

A product [m, k] × [k, n] is 2 m k n operations; causal and banded attention count the pairs that are seen, no more.
D width, M inner width of the MLP, H heads, K keys and V values of a Jet layer.
"""

from __future__ import annotations

import functools
from math import ceil, prod
from typing import NamedTuple

import torch
from throughput_study import Checkpoint, Configuration, Study
from torch import nn

from reverie.model import HybridConfig, HybridLM
from reverie.train.optim import parameter_groups

CHUNK = 64  # tokens that the update rule takes at once
NEWTON_SCHULZ_STEPS = 5
BFLOAT16, FLOAT32 = 2, 4  # bytes

# Bytes a parameter. For a pass over a window: read forward and backward; its gradient written, read, and added.
PASS_BYTES = 2 + 2 + 2 + 2 + 8
COPY_BYTES, CLIP_BYTES, ADAMW_BYTES = 6, 12, 28  # a step
MUON_BYTES = 90  # a step: momentum 24, stacked and halved 18, Newton-Schulz reads and writes 30, the move 18

# How far below the machine's ceilings kernels stay: guesses, from what such kernels are known to reach.
PRODUCTS, ATTENTION, TRAFFIC = 0.75, 0.40, 0.85
# Of a Jet layer, forward and backward: the chunks of a text go one after the other, by three kernels, by 13 launches,
# or by two kernels that invert a matrix of 64 row by row and have a program for each head alone.
CHUNK_SECONDS = {"fla": 15e-6, "chunked": 80e-6, "triton": 150e-6}
RESERVE = 8e9  # bytes: a chunk's logits and slopes, gradients on their way, what the allocator cannot fill


class Ceilings(NamedTuple):
    """Products in bfloat16 and a copy, on large inputs; the defaults were measured on an H200."""

    operations: float = 790e12  # a second
    bytes: float = 4.3e12  # a second, read and written


class Pass(NamedTuple):
    """Of one text through all blocks over one window."""

    tokens: int
    before: int  # tokens that attention may still see
    output: bool  # without it blocks end at the last fast weights, which are written and not read


class Counts(NamedTuple):
    """Of one optimiser step."""

    products: float  # operations of the model, forward and backward, without attention
    attention: float
    again: float  # operations made a second time: what was not kept, and the scores in attention's backward
    muon: float  # operations of Newton-Schulz
    traffic: float  # bytes of what stands between products, of weights and of their gradients
    optimiser_traffic: float
    waits: float  # seconds in which the update rule waits for itself
    memory: float  # bytes at the peak

    @property
    def model(self) -> float:
        """What MFU counts."""
        return self.products + self.attention

    def floor(self, at: Ceilings) -> float:
        """Seconds in which all operations, and all bytes, can be done at best."""
        rest = max((self.model + self.again) / at.operations, self.traffic / at.bytes)
        return rest + max(self.muon / at.operations, self.optimiser_traffic / at.bytes)

    def seconds(self, at: Ceilings) -> float:
        """As predicted: one kernel after the other, each as far below its ceiling as such kernels are."""
        attention = self.attention * 7 / 6  # its backward makes the scores again: half of its forward
        products = self.products + self.again - self.attention / 6
        rest = products / PRODUCTS + attention / ATTENTION
        return rest / at.operations + self.traffic / (TRAFFIC * at.bytes) + self.waits + self.optimiser(at)

    def optimiser(self, at: Ceilings) -> float:
        """Of these seconds."""
        return self.muon / (PRODUCTS * at.operations) + self.optimiser_traffic / (TRAFFIC * at.bytes)


def counts(study: Study, configuration: Configuration, at_once: int, checkpoint: Checkpoint) -> Counts:
    """Of a step over all texts, `at_once` of them in one backward pass."""
    model, sizes = study.model, sizes_of(study.model)
    passes, labels = passes_of(study, configuration), labels_of(study, configuration)
    linear = sum(2 * p.tokens * (sizes.linear if p.output else sizes.linear_unread) for p in passes)
    attention = sum(_attention_operations(model, p, configuration.window) for p in passes)
    forward = linear + sum(_rule_operations(model, p.tokens) for p in passes)
    head = 2 * labels * model.width * model.vocab_size
    tokens = sum(p.tokens for p in passes)  # through all blocks
    # Of a pass, what is made again; under "window" all passes but the last of a window twice.
    again = {"none": 0.0, "pass": 1.0, "window": 2.0 - 1.0 / configuration.passes}[checkpoint]
    backwards = ceil(study.texts / at_once)
    elementwise = study.texts * tokens * _traffic_bytes(model) * (1 + again / 3)
    weights = backwards * len(passes) * PASS_BYTES * sizes.blocks * (1 + again / 8)
    return Counts(
        products=3.0 * study.texts * (forward + head),
        attention=3.0 * study.texts * attention,
        again=study.texts * (again * (forward + attention) + attention / 2),
        muon=sizes.newton_schulz,
        traffic=elementwise + weights + study.texts * 4 * BFLOAT16 * labels * model.vocab_size,
        optimiser_traffic=MUON_BYTES * sizes.muon
        + ADAMW_BYTES * (sizes.all - sizes.muon)
        + CLIP_BYTES * sizes.all
        + COPY_BYTES * sizes.blocks,
        waits=backwards * tokens / CHUNK * CHUNK_SECONDS[model.backend] * _jets(model) * (1 + again / 3),
        memory=sizes.fixed_bytes + RESERVE + at_once * _kept_bytes(study, configuration, checkpoint),
    )


def passes_of(study: Study, configuration: Configuration) -> list[Pass]:
    """Of one text."""
    L = configuration.window
    if configuration.way == "parallel":
        return [Pass(study.text, 0, True)]
    found: list[Pass] = []
    for i, labelled in enumerate(configuration.labelled(study.text)):
        tokens = min(L, study.text - i * L)
        before = min(i * L, L - 1) if configuration.way == "sliding" else 0
        passes = 1 if labelled else configuration.passes
        found += [Pass(tokens, before, labelled or n < passes) for n in range(1, passes + 1)]
    return found


def labels_of(study: Study, configuration: Configuration) -> int:
    """Of one text."""
    windows = configuration.labelled(study.text)
    return study.text if configuration.way != "asleep" else study.text - configuration.window * (len(windows) - 1)


class Sizes(NamedTuple):
    """Parameters of a model, and what goes by them alone."""

    all: int
    blocks: int
    muon: int
    linear: int  # of the blocks: every one of them takes part in each token's products
    linear_unread: int  # of a pass without output
    newton_schulz: float  # operations
    fixed_bytes: float  # parameters, gradients and optimiser states in float32, copies of the blocks in bfloat16


def sizes_of(model: HybridConfig) -> Sizes:
    return _sizes(model.model_dump_json())


@functools.cache
def _sizes(config: str) -> Sizes:
    model = HybridConfig.model_validate_json(config)
    with torch.device("meta"):
        built = HybridLM(model)
    matrices, rest = parameter_groups(built)
    total, muon = (sum(p.numel() for p in group) for group in (built.parameters(), matrices.values()))
    blocks = sum(p.numel() for p in built.layers.parameters())
    linear = [
        {name: m.weight.numel() for name, m in block.named_modules() if isinstance(m, nn.Linear)}
        for block in built.layers
    ]
    last = max(built.fast_weight_blocks, default=0)
    unread = sum(n for name, n in linear[last].items() if not name.endswith(("gate_proj", "out_proj", "mlp.in_proj")))
    sides = [(min(p.shape), max(p.shape)) for p in matrices.values()]
    return Sizes(
        all=total,
        blocks=blocks,
        muon=muon,
        linear=sum(sum(block.values()) for block in linear),
        linear_unread=sum(sum(block.values()) for block in linear[:last]) + unread,
        newton_schulz=float(NEWTON_SCHULZ_STEPS * sum(4 * m * m * n + 2 * m**3 for m, n in sides)),
        fixed_bytes=FLOAT32 * (2 * total + muon + 2 * sum(p.numel() for p in rest.values())) + BFLOAT16 * blocks,
    )


def _jets(model: HybridConfig) -> int:
    return len(model.layers) - model.layers.count("attn")


def _attention_operations(model: HybridConfig, one: Pass, window: int) -> float:
    """Of all attention blocks, forward."""
    pairs = sum(min(one.before + t + 1, window) for t in range(one.tokens))
    last = max(i for i, kind in enumerate(model.layers) if kind != "attn")
    return 4.0 * model.width * pairs * (model.layers if one.output else model.layers[:last]).count("attn")


def _rule_operations(model: HybridConfig, tokens: int) -> float:
    """Of the update rule in all Jet layers, forward: scores of keys and queries, the inverse, the states."""
    C, K, V = min(CHUNK, tokens), model.key_size, model.value_size
    chunk = 4 * C * C * K + C**3 + 4 * C * C * V + 6 * C * K * V
    return float(_jets(model) * model.fast_heads * ceil(tokens / C) * chunk)


def _traffic_bytes(model: HybridConfig) -> float:
    """A token's way through all blocks, forward and backward, between products: compiled, in bfloat16.

    Read and written forward, in attention's block: 2 D by each norm, 4 by the norms and turns of q and k, 4 by
    attention, 6 by the sums, and 3 M by the MLP's gate; backward twice that. In a Jet layer: queries, keys and values
    twice, the taps of the convolution and its result, the rule, the gate. "chunked" writes out every term, in float32.
    """
    D, M = model.width, model.mlp_width
    HK, HV, taps = model.fast_heads * model.key_size, model.fast_heads * model.value_size, model.conv_size
    attention, jet = 18 * D + 3 * M, 5 * D + 6 * HK + (2 * taps + 10) * HV
    jet += 2 * _chunked_terms(model)  # twice as wide
    return 3.0 * BFLOAT16 * (model.layers.count("attn") * attention + _jets(model) * jet)


def _chunked_terms(model: HybridConfig) -> int:
    """Of a token in a Jet layer, beyond what fla keeps: k and q thrice, z and w, three products of C, S / C."""
    H, K, V = model.fast_heads, model.key_size, model.value_size
    return H * (6 * K + 2 * V + 3 * CHUNK + K * V // CHUNK) if model.backend == "chunked" else 0


def _kept_bytes(study: Study, configuration: Configuration, checkpoint: Checkpoint) -> float:
    """Of one text, alive when the backward pass begins, and what it makes again at a time."""
    model, passes = study.model, passes_of(study, configuration)
    D, HK, HV = model.width, model.fast_heads * model.key_size, model.fast_heads * model.value_size
    # h twice, q k v before and after norm and turn, o; gate, up, their product. Sliding: two windows' keys and values.
    attention = (8 + 4 * (configuration.way == "sliding")) * D + 3 * model.mlp_width
    jet = D + 4 * HK + (model.conv_size + 5) * HV + 2 * _chunked_terms(model)
    token = BFLOAT16 * (model.layers.count("attn") * attention + _jets(model) * jet)
    state = FLOAT32 * _jets(model) * prod((model.fast_heads, model.key_size, model.value_size))
    longest, start = max(p.tokens for p in passes), BFLOAT16 * D
    if checkpoint == "none":
        return float(token * sum(p.tokens for p in passes) + state * len(passes))
    if checkpoint == "pass":
        return float(sum(start * p.tokens + state for p in passes) + token * longest)
    windows = len(configuration.labelled(study.text))
    return float(windows * state + configuration.passes * (start * longest + state) + token * longest)
