"""`reverie bench decode`: a token awake beside transformers' hybrids of the same sizes, and its matrix products."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.bench.card import Details, Findings, Row, at_most, number
from reverie.bench.check import SEED, random_model, require_equal
from reverie.bench.machine import Peak
from reverie.bench.rivals import forward_loop, transformers_hybrids, write_greedily
from reverie.bench.timer import Timing, alternate, with_threads
from reverie.bench.wake import MODEL, WINDOW
from reverie.model import HybridConfig, HybridLM, count_parameters
from reverie.results.card import Report
from reverie.sleep import Context, SleepConfig, read
from reverie.sleep.compiled import compile_awake
from reverie.sleep.generate import token_by_token

SIZES = (1, 1), (1, 2), (8, 2), (32, 2)  # B and threads
TOKENS = 64  # from the start of a text
OURS, COMPILED, PRODUCTS = "reverie", "reverie, compiled", "matrix products"

RIVALS_TARGET = 0.5  # over the faster loop of transformers
COMPILED_RIVALS_TARGET = 0.2
PRODUCTS_TARGET = 2.0  # compiled, over the products alone

TOLERANCE = 1e-4  # of the largest logit


def measure(
    peak: Peak,
    report: Report,
    config: HybridConfig = MODEL,
    window_size: int = WINDOW,
    sizes: Sequence[tuple[int, int]] = SIZES,
    seconds: float = 90.0,
) -> Findings:
    """The time of a token for each batch size and number of threads, all sides in turn.

    Raises:
        UserError: compiled, or token by token, the logits are others; then nothing is timed.
    """
    model, sleep_config = random_model(config).eval(), SleepConfig(window_size=window_size)
    rivals = transformers_hybrids(config, SEED)
    for rival in rivals.values():
        _with_cache(rival.eval())
    rows = list[Row]()
    for i, (B, threads) in enumerate(sizes):
        report(i, len(sizes), f"a token awake, B = {B}, threads: {threads}")
        sides = _sides(model, sleep_config, rivals, B)
        with with_threads(threads):
            times = alternate(sides, seconds=seconds / len(sizes))
        rows += _rows(B, threads, times)
    targets = _targets(rows)
    return Findings(
        name="decode",
        ratio=number(targets[0], "ratio"),
        target=RIVALS_TARGET,
        better="lower",
        details=Details(tables={"targets": targets, "a token awake": rows}, notes=_notes(model, window_size)),
    )


def _targets(rows: list[Row]) -> list[Row]:
    """The worst ratio over rows of one text, and the most that it should be."""
    found = [
        ("ours over the faster loop of transformers", OURS, "over_rival", RIVALS_TARGET),
        ("compiled over the faster loop of transformers", COMPILED, "over_rival", COMPILED_RIVALS_TARGET),
        ("compiled over its matrix products", COMPILED, "over_products", PRODUCTS_TARGET),
    ]
    targets = list[Row]()
    for what, model, column, target in found:
        ratio = max(number(row, column) for row in rows if (row["B"], row["model"]) == (1, model))
        targets.append(at_most(what, ratio, target))
    return targets


def _notes(model: HybridLM, window_size: int) -> list[str]:
    return [
        f"Width {model.config.width}, {len(model.config.layers)} blocks, {count_parameters(model) / 1e6:.2f}M random "
        f"parameters, float32: attention and Gated DeltaNet in turn. The first {TOKENS} tokens of a text, in a window "
        f"of {window_size}; ms of a step of all B texts, through read.",
        "transformers' hybrids of the same sizes, with use_cache in both configs: a loop over forward, and generate.",
        "matrix products: every linear layer once on B rows, and nothing else.",
        "over_rival: over the faster of transformers' four; medians over rounds of the two times in the same round. "
        "The headline is the worst of one text, not compiled. Lower is better.",
    ]


def _sides(
    model: HybridLM, config: SleepConfig, rivals: dict[str, nn.Module], B: int
) -> dict[str, Callable[[], object]]:
    text = torch.randint(model.config.vocab_size, (B, TOKENS), generator=torch.Generator().manual_seed(SEED))
    model.awake.clear()
    compile_awake(model, config, batch_size=B)
    compiled = dict(model.awake)
    with torch.no_grad():
        wanted, _ = read(model, text, Context.empty(model), config)
    for what, awake in (("token by token", {}), ("compiled", compiled)):
        require_equal(_decode(model, awake, config, text), wanted, TOLERANCE, f"of the logits {what} the worst")
    sides: dict[str, Callable[[], object]] = {
        OURS: partial(_decode, model, {}, config, text),
        COMPILED: partial(_decode, model, compiled, config, text),
        PRODUCTS: partial(_multiply, model, B),
    }
    for name, rival in rivals.items():
        sides[f"{name}, forward"] = partial(forward_loop, rival, text)
        sides[f"{name}, generate"] = partial(write_greedily, rival, text[:, :1], TOKENS)
    return sides


def _rows(B: int, threads: int, times: dict[str, Timing]) -> list[Row]:
    rivals = [name for name in times if name not in (OURS, COMPILED, PRODUCTS)]
    best = min(rivals, key=lambda name: times[name].median)
    return [
        {
            "B": B,
            "threads": threads,
            "model": name,
            "ms": 1e3 * timing.median / TOKENS,
            "over_rival": timing.over(times[best]),
            "over_products": timing.over(times[PRODUCTS]),
        }
        for name, timing in times.items()
    ]


def _decode(model: HybridLM, awake: dict[int, Any], config: SleepConfig, text: Tensor) -> Tensor:
    model.awake.clear()
    model.awake.update(awake)
    return token_by_token(model, text, Context.empty(model), config)[0]


@torch.no_grad()
def _multiply(model: HybridLM, B: int) -> None:
    """Every linear layer once a token, on rows of zeros."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    rows = [torch.zeros(B, layer.in_features) for layer in layers]
    for _ in range(TOKENS):
        for layer, row in zip(layers, rows, strict=True):
            F.linear(row, layer.weight)


def _with_cache(rival: Any) -> None:
    """Without both switches `generate` runs over all earlier tokens again for every new one."""
    rival.config.use_cache = rival.generation_config.use_cache = True
