"""`reverie bench pretrained`: a token of SmolLM2 awake, with layers that remember and in int8, beside the untouched."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reverie.bench.card import Details, Findings, Row, at_most, number
from reverie.bench.check import SEED, require_equal
from reverie.bench.machine import Peak
from reverie.bench.rivals import forward_loop, write_greedily
from reverie.bench.timer import Timing, alternate, with_threads
from reverie.errors import UserError
from reverie.model import count_parameters
from reverie.results.card import Report

TOKENS = 32  # from the start of a text
WINDOW = 512
LAYERS = 6  # of Jet, spread evenly
UNTOUCHED, JET, PRODUCTS = "untouched", "with Jet layers", "matrix products"

JET_TARGET = 1.1  # over the untouched model, both in float32
INT8_TARGET = 0.65  # with Jet layers and int8, over the untouched model in float32

TOLERANCE = 1e-4  # of the largest logit
INT8_TOLERANCE = 0.2


def measure(
    peak: Peak, report: Report, base: str = "smollm2", threads: Sequence[int] = (1, 2), seconds: float = 120.0
) -> Findings:
    """The time of a token for each number of threads, all sides in turn.

    Raises:
        UserError: with new layers, or in int8, the logits are others; then nothing is timed. Or a library is missing.
    """
    models = _models(base)
    vocabulary = models[UNTOUCHED].config.vocab_size
    text = torch.randint(vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(SEED))
    off = _check(models, text)
    sides = _sides(models, text)
    rows = list[Row]()
    for i, count in enumerate(threads):
        report(i, len(threads), f"a token of {base} awake, threads: {count}")
        with with_threads(count):
            rows += _rows(count, alternate(sides, seconds=seconds / len(threads)))
    targets = [
        _target(rows, f"{JET} over untouched", JET, JET_TARGET),
        _target(rows, f"{JET}, int8, over untouched in float32", f"{JET}, int8", INT8_TARGET),
    ]
    return Findings(
        name="pretrained",
        ratio=number(targets[0], "ratio"),
        target=JET_TARGET,
        better="lower",
        details=Details(tables={"targets": targets, "a token awake": rows}, notes=_notes(base, models[UNTOUCHED], off)),
    )


def _notes(base: str, untouched: nn.Module, off: float) -> list[str]:
    return [
        f"{base}, {count_parameters(untouched) / 1e6:.1f}M parameters, float32, one text; {LAYERS} Jet layers spread "
        f"evenly, a window of {WINDOW}. ms of one of the first {TOKENS} tokens, in a loop over forward and in "
        "generate.",
        f"int8: reverie.hf.quantize_awake, which leaves inserted layers in float32; its logits are off by {off:.2g} of "
        "the largest.",
        "matrix products: every linear layer of the untouched model once on a row, and nothing else.",
        "over_untouched: over the untouched model in float32, decoding in the same way; medians over rounds of the "
        "two times in the same round. The targets are the worst of both ways. Lower is better.",
    ]


def _models(base: str) -> dict[str, Any]:
    """All models on the same weights."""
    try:
        from reverie.hf.add import add_sleep, insert_fast_weights
        from reverie.hf.bases import load_base
        from reverie.hf.convert import spread
        from reverie.hf.int8 import quantize_awake
        from reverie.sleep import SleepConfig
    except ImportError:
        raise UserError("this needs the package transformers; run pip install 'reverie[hf,smollm2]'") from None
    untouched: Any = load_base(base).eval()
    jet: Any = _on_the_same_weights(untouched)
    insert_fast_weights(jet, spread(LAYERS, untouched.config.num_hidden_layers), "jet")
    add_sleep(jet, SleepConfig(window_size=WINDOW))
    models = {UNTOUCHED: untouched, JET: jet}
    return models | {f"{name}, int8": quantize_awake(_on_the_same_weights(x)) for name, x in models.items()}


def _on_the_same_weights(model: nn.Module) -> Any:
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def _check(models: Mapping[str, Any], text: Tensor) -> float:
    """How far off int8 is; raises UserError where a model computes something else than the untouched one."""
    wanted = forward_loop(models[UNTOUCHED], text)
    require_equal(forward_loop(models[JET], text), wanted, TOLERANCE, f"{JET}, of the logits the worst")
    off = {name: INT8_TOLERANCE for name in models if name.endswith("int8")}
    return max(
        require_equal(forward_loop(models[name], text), wanted, most, f"{name}, of the logits the worst")
        for name, most in off.items()
    )


def _sides(models: Mapping[str, Any], text: Tensor) -> dict[str, Callable[[], object]]:
    sides: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        sides[f"{name}, forward"] = partial(forward_loop, model, text)
        sides[f"{name}, generate"] = partial(write_greedily, model, text[:, :1], TOKENS)
    for name in (UNTOUCHED, f"{UNTOUCHED}, int8"):
        of = [layer for layer in models[name].modules() if isinstance(layer, nn.Linear)]
        sides[PRODUCTS + name.removeprefix(UNTOUCHED)] = partial(_multiply, of)
    return sides


def _rows(threads: int, times: Mapping[str, Timing]) -> list[Row]:
    rows = list[Row]()
    for name, timing in times.items():
        way = "generate" if name.endswith("generate") else "forward"
        ratio = timing.over(times[f"{UNTOUCHED}, {way}"])
        rows.append({"threads": threads, "model": name, "ms": 1e3 * timing.median / TOKENS, "over_untouched": ratio})
    return rows


def _target(rows: Sequence[Row], what: str, model: str, target: float) -> Row:
    """The worst ratio over threads and ways of decoding, and the most that it should be."""
    names = {f"{model}, {way}" for way in ("forward", "generate")}
    ratio = max(number(row, "over_untouched") for row in rows if row["model"] in names)
    return at_most(what, ratio, target)


@torch.no_grad()
def _multiply(layers: Sequence[nn.Linear]) -> None:
    rows = [torch.zeros(1, layer.in_features) for layer in layers]
    for _ in range(TOKENS):
        for layer, row in zip(layers, rows, strict=True):
            layer(row)
