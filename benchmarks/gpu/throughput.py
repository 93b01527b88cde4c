"""How fast a model of Ouro 1.4B's sizes trains on 12,000 tokens: window by window, all at once, asleep with N passes.

    python benchmarks/gpu/throughput.py --out results/gpu/throughput.json [--only 2000] [--seconds 560]

measures a full training step (forward, backward, clip, Muon and AdamW) of each configuration, one by one. Each is in
the card as soon as it is measured, and the next call goes on behind it; one that fails is noted, and others go on.
A figure lies beside the card. `--predict` prints what is expected, without measuring; `--toy` takes seconds on a CPU.
"""

# ruff: noqa: E402
from __future__ import annotations

import time

BEGUN = time.monotonic()  # importing torch counts as well

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # read when torch is imported
sys.path.insert(0, str(Path(__file__).parent))

import kernels
import torch
from machine import ceilings as measured_ceilings
from record import code_hash
from stopwatch import synchronise
from throughput_card import Card, figure, predictions, table
from throughput_counts import CHUNK_SECONDS, Ceilings
from throughput_measure import Setting, Trainer, measure, settings
from throughput_study import Configuration, Study, ouro
from torch.nn.attention import SDPBackend, sdpa_kernel

from reverie.errors import UserError
from reverie.ops import fla
from reverie.results.plots import save_figure

ATTENTION = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
TOLERANCE = {"loss": 0.003, "gradient_norm": 0.03}  # between sliding and parallel, one function, in bfloat16

TOY = Study(
    model=ouro().model_copy(
        update={"layers": ("attn", "jet-only", "attn"), "vocab_size": 64, "width": 32, "mlp_width": 48}
        | {"num_heads": 2, "fast_heads": 2, "key_size": 8, "value_size": 16}
    ),
    text=12,
    texts=2,
    windows=(4, 6),
    passes=(1, 2),
    at_once=(2, 1),
)

Measure = Callable[[Trainer, Configuration, Setting, Ceilings], dict[str, Any]]


def main(arguments: Sequence[str] | None = None, begun: float | None = None) -> None:
    """The seconds count from `begun` (of `time.monotonic`), or from now."""
    begun = time.monotonic() if begun is None else begun
    options = _arguments(arguments)
    backend = options.backend or ("fla" if fla.installed() and not fla.miscompiled() else "chunked")
    study = TOY if options.toy else Study(ouro(backend))
    if options.texts is not None:
        study = study._replace(texts=options.texts)
    if options.predict:
        print(predictions(study, Ceilings()))
        return
    if options.out is None:
        raise UserError("--out is missing: the card to write")
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device: --predict says what is expected, --toy --device cpu tries the script")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # for the update rule on "chunked", the only products in float32
    only = [word for word in (options.only or "").split(",") if word]
    card = Card.begin(options.out, study, device, options.attention)
    configurations = study.chosen(only)
    check_backend(card, study, device)
    left = options.seconds - (time.monotonic() - begun)
    run(card, study, configurations, device, left, again=bool(only))
    save_figure(figure(card), card.path.with_suffix(".png"))
    print(table(card))


def check_backend(card: Card, study: Study, device: torch.device) -> None:
    """Of the Jet layers, at their sizes, once for each state of the code: no time counts of what is wrong.

    Raises UserError where it is.
    """
    model, code = study.model, code_hash()
    if card.content.get("kernels", {}).get("code") == code:
        return
    T = min(kernels.LONGEST, study.text)
    H, K, V = (size or 0 for size in (model.fast_heads, model.key_size, model.value_size))
    sizes = kernels.Sizes(model.update_rule, H, K, V, (T, T - 1))
    found = kernels.check_backend(model.backend, [sizes], device)
    if not found["passed"]:
        raise UserError(f"backend {model.backend} is not right on this machine: {found['why']}; try another --backend")
    errors = [row["error"] for row in found["rows"]]
    card.content["kernels"] = {"code": code, "cases": len(errors), "largest_error": max(errors)}
    print(f"backend {model.backend} is right in {len(errors)} cases, off by {max(errors):.1e} at most", flush=True)


def run(
    card: Card,
    study: Study,
    configurations: Sequence[Configuration],
    device: torch.device,
    seconds: float,
    *,
    again: bool = False,
    measure: Measure = measure,
) -> None:
    """Measure what is not in the card yet, `again` what is, as long as there is time; what is begun is finished."""
    begun, longest, trainer, window = time.monotonic(), 0.0, None, None
    for configuration in configurations:
        if not again and configuration.name in card.names:
            continue
        if time.monotonic() - begun + longest > seconds:
            print(f"{configuration.name} and what follows are left for the next call", flush=True)
            return
        at, started = _ceilings(card, device), time.monotonic()
        trainer = trainer or Trainer(study, device, compiled=device.type == "cuda")
        if window not in (None, configuration.window):
            torch._dynamo.reset()  # other shapes: what was compiled before would only be looked through
        window = configuration.window
        with _attention(card.content["attention"]):
            row = _tried(trainer, configuration, at, measure, card)
        card.add(configuration, row)
        _check_device(device, configuration)
        longest = max(longest, time.monotonic() - started)
        print(f"{configuration.name}: {_said(row)} ({time.monotonic() - begun:.0f} s)", flush=True)


def _tried(
    trainer: Trainer, configuration: Configuration, at: Ceilings, measure: Measure, card: Card
) -> dict[str, Any]:
    """The first setting that fits; or why none did."""
    attempts: list[dict[str, Any]] = []
    for setting in settings(trainer.study, configuration, at):
        try:
            row = measure(trainer, configuration, setting, at) | {**setting._asdict(), "attempts": attempts}
            return row | _disagreement(configuration, row, card)
        except UserError:
            raise
        except Exception as error:  # whatever it is, the other configurations go on
            if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
                attempts.append({**setting._asdict(), "failed": "out of memory"})
                continue
            why = str(error).strip().splitlines()[:1] or [type(error).__name__]
            return {"failed": f"{type(error).__name__}: {why[0][:300]}", **setting._asdict(), "attempts": attempts}
        finally:
            trainer.let_go()
    return {"failed": "out of memory at every setting", "attempts": attempts}


def _disagreement(configuration: Configuration, row: dict[str, Any], card: Card) -> dict[str, Any]:
    """No time counts of a way that computes something else than its other way."""
    other = {"sliding": "parallel", "parallel": "sliding"}.get(configuration.way)
    theirs = card.rows.get(configuration._replace(way=other).name) if other else None
    if theirs is None or "failed" in theirs:
        return {}
    for key, tolerance in TOLERANCE.items():
        if abs(row[key] - theirs[key]) > tolerance * abs(theirs[key]):
            return {"failed": f"its {key.replace('_', ' ')} is {row[key]:.5g}, of {other} it is {theirs[key]:.5g}"}
    return {}


def _check_device(device: torch.device, configuration: Configuration) -> None:
    """After some failures a process can do nothing more on its GPU."""
    try:
        synchronise(device)
    except RuntimeError as error:
        raise UserError(f"the GPU answers no more behind {configuration.name}: call again, the card goes on") from error


def _said(row: dict[str, Any]) -> str:
    if "failed" in row:
        return row["failed"]
    memory = "" if row["peak_gib"] is None else f", {row['peak_gib']:.0f} GiB"
    return f"{row['tokens_per_s']:,.0f} tokens/s, MFU {row['mfu']:.1%}{memory}"


def _ceilings(card: Card, device: torch.device) -> Ceilings:
    if "ceilings" not in card.content:
        card.content["ceilings"] = measured_ceilings(device)
    found = card.content["ceilings"]
    return Ceilings(found["bfloat16_tflops"] * 1e12, found["copy_tb_per_s"] * 1e12)


@contextlib.contextmanager
def _attention(name: str) -> Any:
    with sdpa_kernel([ATTENTION[name], SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], set_priority=True):
        yield


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="card (.json) to write or to go on with; a figure beside it")
    parser.add_argument("--only", metavar="WORDS", help='those whose names hold one of these, anew: "2000,hard"')
    parser.add_argument(
        "--seconds", type=float, default=560.0, help="of this call; what might take longer is not begun"
    )
    parser.add_argument("--texts", type=int, help="of a step; 8 if absent")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--attention", default="flash", choices=list(ATTENTION), help="kernels within a window")
    parser.add_argument(
        "--backend",
        choices=list(CHUNK_SECONDS),
        help="of the Jet layers; fla where it is right, else chunked",
    )
    parser.add_argument("--toy", action="store_true", help="tiny sizes")
    parser.add_argument("--predict", action="store_true", help="print what is expected, and measure nothing")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        main(begun=BEGUN)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
