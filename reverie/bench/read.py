"""`reverie bench read`: consolidation by passes and window size, beside prefill of models that do not sleep."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reverie.bench.card import Details, Findings, Row, at_most, number
from reverie.bench.check import SEED, random_model, require_equal
from reverie.bench.machine import Peak
from reverie.bench.rivals import transformers_hybrids, transformers_module
from reverie.bench.timer import Timing, alternate
from reverie.model import HybridConfig, SleepingModel
from reverie.results.card import Report
from reverie.sleep import Context, SleepConfig, consolidate, read

HYBRID = HybridConfig(
    vocab_size=1024,
    width=256,
    layers=("attn", "gdn") * 2,
    mlp_width=688,
    num_heads=4,
    fast_heads=4,
    key_size=48,
    value_size=96,
)
TOKENS, CHECKED = 4096, 256
HYBRID_SIDES = tuple((N, L) for N in (1, 2, 4) for L in (32, 64, 128, 512))
SMOLLM2_SIDES = (1, 512), (2, 512), (4, 512), (2, 32)  # N and L
JET_LAYERS = 6  # as reverie convert spreads them
LATE = "2 layers, N = 4 over blocks 16 and 17, L = 512"
PREFILL, GENERATE = "prefill without sleep", "generate, N = 1, L = 512"
TOLERANCE = 1e-3  # of the largest entry, after so many windows in float32


class Target(NamedTuple):
    """A side's time over another's."""

    what: str
    model: str
    side: str
    base: str
    most: float


SMOLLM2, WIDTH_256 = "SmolLM2", "width 256"
TARGETS = (
    *(
        Target(
            f"SmolLM2 + 6 Jet layers, N = {N}, over prefill without sleep", SMOLLM2, f"N = {N}, L = 512", PREFILL, most
        )
        for N, most in ((1, 0.66), (2, 1.6), (4, 3.4))
    ),
    Target("the same through generate, N = 1", SMOLLM2, GENERATE, PREFILL, 0.66),
    Target(f"SmolLM2 + {LATE}, over prefill without sleep", SMOLLM2, LATE, PREFILL, 1.0),
    Target("SmolLM2, a token in windows of 32 over 512, N = 2", SMOLLM2, "N = 2, L = 32", "N = 2, L = 512", 1.5),
    Target("width 256, N = 1, over prefill of OlmoHybrid", WIDTH_256, "N = 1, L = 512", "OlmoHybrid, prefill", 1 / 1.3),
)


def measure(peak: Peak, report: Report, tokens: int = TOKENS, seconds: float = 60.0) -> Findings:
    """The time of a text for each N and window size, beside prefill, all sides of a model in turn.

    Raises:
        UserError: windows side by side leave other fast weights than one after the other; nothing is timed then.
    """
    rows = list[Row]()
    for i, (name, sides) in enumerate({WIDTH_256: _hybrid_sides, SMOLLM2: _smollm2_sides}.items()):
        report(i, 2, f"reading {tokens:,} tokens, {name}")
        text = torch.randint(HYBRID.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(SEED))
        with torch.no_grad():
            times = alternate(sides(text), seconds=seconds, least=2)
        rows += _rows(name, times, tokens)
    targets = _targets(rows)
    return Findings(
        name="read",
        ratio=number(targets[0], "ratio"),
        target=TARGETS[0].most,
        better="lower",
        details=Details(tables={"targets": targets, "reading a text": rows}, notes=_notes(tokens)),
    )


def _hybrid_sides(text: Tensor) -> dict[str, Callable[[], object]]:
    model, sides = random_model(HYBRID).eval(), dict[str, Callable[[], object]]()
    for N, L in HYBRID_SIDES:
        sides[f"N = {N}, L = {L}"] = _reading(model, text, SleepConfig(window_size=L, num_sleep_passes=N))
    sides["reverie, " + PREFILL] = partial(
        read, model, text, Context.empty(model), SleepConfig(window_size=text.shape[1]), newest_only=True
    )
    for name, rival in transformers_hybrids(HYBRID, SEED).items():
        sides[f"{name}, prefill"] = _prefill(rival.eval(), text)
    return sides


def _smollm2_sides(text: Tensor) -> dict[str, Callable[[], object]]:
    transformers_module()  # or a sentence that says what is missing
    from reverie.hf import add_sleep, insert_fast_weights
    from reverie.hf.bases import load_base
    from reverie.hf.convert import spread

    stock: Any = load_base("smollm2").eval()
    six, late = copy.deepcopy(stock), copy.deepcopy(stock)
    insert_fast_weights(six, spread(JET_LAYERS, stock.config.num_hidden_layers))
    insert_fast_weights(late, (16, 17))
    sides = {PREFILL: _prefill(stock, text)}
    for model in (six, late):
        add_sleep(model, SleepConfig(window_size=512))
    for N, L in SMOLLM2_SIDES:
        config = SleepConfig(window_size=L, num_sleep_passes=N)
        sides[f"N = {N}, L = {L}"] = _reading(six.sleeping, text, config)
    config = SleepConfig(window_size=512, num_sleep_passes=4, looped_blocks=(16, 18))
    sides[LATE] = _reading(late.sleeping, text, config)
    mask = torch.ones_like(text)
    sides[GENERATE] = partial(
        six.generate, input_ids=text, attention_mask=mask, min_new_tokens=1, max_new_tokens=1, do_sample=False
    )
    return sides


def _reading(model: SleepingModel, text: Tensor, config: SleepConfig) -> Callable[[], object]:
    """Consolidation of the text, compared with what reading in pieces leaves."""
    few, empty = text[:, :CHECKED], Context.empty(model)
    with torch.no_grad():
        at_once, context = consolidate(model, few, empty, config), empty
        for window in few.split(min(config.window_size, CHECKED), dim=1):
            context = consolidate(model, window, context, config)
    for got, wanted in zip(at_once.state.fast_weights, context.state.fast_weights, strict=True):
        if got is not None and wanted is not None:
            require_equal(got, wanted, TOLERANCE, f"windows of {config.window_size} side by side: a fast weight")
    return partial(consolidate, model, text, empty, config)


def _prefill(model: nn.Module, text: Tensor) -> Callable[[], object]:
    return partial(model, input_ids=text, use_cache=True, logits_to_keep=1)


def _rows(name: str, times: dict[str, Timing], tokens: int) -> list[Row]:
    base = PREFILL if PREFILL in times else "OlmoHybrid, prefill"
    return [
        {
            "model": name,
            "side": side,
            "tokens_per_s": tokens / timing.median,
            "over_prefill": timing.over(times[base]),
            "over_L_512": timing.over(times[large])
            if (large := side.partition(", L")[0] + ", L = 512") in times
            else None,
        }
        for side, timing in times.items()
    ]


def _targets(rows: Sequence[Row]) -> list[Row]:
    by_side, targets = {(row["model"], row["side"]): row for row in rows}, list[Row]()
    for target in TARGETS:
        row = by_side[target.model, target.side]
        ratio = number(row, "over_L_512" if target.base.endswith("L = 512") else "over_prefill")
        targets.append(at_most(target.what, ratio, target.most))
    return targets


def _notes(tokens: int) -> list[str]:
    return [
        f"One text of {tokens:,} random tokens, float32, {torch.get_num_threads()} threads; hard eviction, all blocks "
        "looped where nothing else is said. Reading is consolidation: all windows are slept over.",
        f"SmolLM2: 135M parameters, with {JET_LAYERS} Jet layers spread evenly, or two after blocks 16 and 17; "
        "untrained, which takes the same time. generate: the text as a prompt, and one token.",
        f"width {HYBRID.width}: {len(HYBRID.layers)} blocks, attention and Gated DeltaNet in turn, beside "
        "transformers' hybrids of the same sizes.",
        "prefill: the whole text in one forward with a cache, and the logits of its last token. over_prefill: over "
        "that of SmolLM2 without sleep, or of OlmoHybrid; medians over rounds of two times in the same round. A longer "
        "text makes prefill dearer for each token, and reading not.",
        "The headline is SmolLM2 with six Jet layers at N = 1. Lower is better.",
    ]
