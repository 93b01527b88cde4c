"""What training with sleep costs: formulas beside measurements here, and at 1.4B, 8B and 70B on paper.

    python benchmarks/scaling.py --out results/scaling.json

trains small models for a step while operations, bytes and collectives are counted, compares the counts with the
formulas, and applies the formulas to large models. Leaves a card and a figure, and prints the tables of
docs/SCALING.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import scaling_formulas as formulas
import scaling_measured as measured
import scaling_paper as paper
import scaling_traffic as traffic
import torch
from scaling_formulas import Work
from scaling_tables import figure, tables

from reverie.errors import UserError
from reverie.files import write_atomic
from reverie.model import HybridConfig
from reverie.results.plots import save_figure
from reverie.results.provenance import commit_id, hardware
from reverie.sleep import SleepConfig
from reverie.sleep.gradients import Backward
from reverie.train.distributed import Parallel

TARGET = 0.05  # of what is measured


class Check(NamedTuple):
    quantity: str
    case: str
    predicted: float
    measured: float

    @property
    def deviation(self) -> float:
        return self.predicted / self.measured - 1


def small(
    layers: tuple[str, ...] = ("attn", "gdn", "attn", "gdn"),
    labelled: str = "---x",
    window: int = 128,
    passes: int = 3,
    looped: tuple[int, int] | None = None,
    **backward: Any,
) -> Work:
    """Two texts through a model of width 48; "-" is a window asleep, "x" one with 8 labels a text."""
    model = HybridConfig.model_validate(
        {
            "vocab_size": 96,
            "width": 48,
            "layers": layers,
            "mlp_width": 128,
            "num_heads": 4,
            "num_kv_heads": 2,
            "fast_heads": 3,
            "key_size": 12,
            "value_size": 24,
        }
    )
    sleep = SleepConfig(window_size=window, num_sleep_passes=passes, looped_blocks=looped)
    windows = tuple(mark == "x" for mark in labelled)
    return Work(model, sleep, Backward.model_validate(backward), 2, windows, 16 * sum(windows))


CASES = {
    "N = 1": small(passes=1),
    "N = 2": small(passes=2),
    "N = 3": small(),
    "N = 3, L = 64": small(window=64),
    "N = 3, blocks 1 and 2 looped": small(looped=(1, 3)),
    "N = 4, blocks 0 and 1 looped": small(passes=4, looped=(0, 2)),
    "N = 3, labels in windows 1 and 3": small(labelled="-x-x"),
    "N = 3, labels in windows 2 and 3": small(labelled="--xx"),
    "jet": small(("attn", "jet", "attn", "jet")),
    "gdn and jet, blocks 1 to 3 looped": small(("gdn", "attn", "attn", "jet", "attn"), looped=(1, 4)),
    "transformer": small(("attn",) * 4, labelled="-xxx"),
    "pass": small(activation_checkpoint="pass"),
    "pass, N = 4, labels in windows 1 and 3": small(passes=4, labelled="-x-x", activation_checkpoint="pass"),
    "pass, blocks 1 and 2 looped": small(looped=(1, 3), activation_checkpoint="pass"),
    "window": small(activation_checkpoint="window"),
    "window, jet, N = 2": small(("attn", "jet", "attn", "jet"), passes=2, activation_checkpoint="window"),
    "window, N = 4, blocks 0 and 1 looped": small(passes=4, looped=(0, 2), activation_checkpoint="window"),
    "last 2 of 4 passes": small(passes=4, bptt_passes=2),
    "labels reach 1 window": small(bptt_windows=1),
}
TRAFFIC_CASES = ("N = 1", "N = 3", "N = 4, blocks 0 and 1 looped", "jet", "pass", "window")


def checks() -> Iterator[Check]:
    """Predictions beside measurements."""
    for case in ("N = 3", "jet", "gdn and jet, blocks 1 to 3 looped", "transformer"):
        yield from _parameter_checks(case, CASES[case])
    for case, work in CASES.items():
        forward, backward = measured.operations(work)
        expected = formulas.operations(work)
        yield Check("operations, forward", case, expected.forward, forward)
        yield Check("operations, backward", case, expected.backward + expected.recompute, backward)
    for case, work in CASES.items():
        if work.backward.bptt_passes is None and work.backward.bptt_windows is None:
            kept, peak = measured.live_bytes(work)
            yield Check("bytes, kept for the backward", case, formulas.kept_bytes(work), kept)
            yield Check("bytes, most in the backward", case, formulas.peak_bytes(work), peak)
    yield from _traffic_checks()


def _parameter_checks(case: str, work: Work) -> Iterator[Check]:
    shapes, found = formulas.all_shapes(work.model), measured.shapes_of(work.model)
    if shapes != found:
        raise UserError(f"the formulas do not know the parameters of {case}: {shapes.items() ^ found.items()}")
    yield Check("parameters", case, formulas.count(shapes), formulas.count(found))
    yield Check("bytes, optimisers", case, formulas.optimizer_bytes(shapes), measured.optimizer_bytes(work))
    yield Check("operations, Muon", case, formulas.muon_operations(shapes), measured.muon_operations(work))


def _traffic_checks() -> Iterator[Check]:
    cases: list[tuple[str, Parallel, bool]] = [(case, "ddp", False) for case in ("N = 1", "N = 3")]
    for case in TRAFFIC_CASES:
        cases.extend([(case, "fsdp", False), (case, "fsdp", True)])
    found = measured.traffic([(CASES[case], how, every_run) for case, how, every_run in cases])
    for (case, how, every_run), payload in zip(cases, found, strict=True):
        work = CASES[case]
        expected = traffic.ddp(work) if how == "ddp" else traffic.fsdp(work, 2, once=not every_run)
        if how == "ddp":
            yield Check("bytes, DDP reduces", case, expected.reduced, payload["reduced"])
            continue
        name = f"{case}, {'every run gathers' if every_run else 'gathered once'}"
        yield Check("bytes, FSDP gathers", name, expected.gathered, payload["gathered"])
        yield Check("bytes, FSDP scatters", name, expected.scattered, payload["scattered"])
        if not every_run:
            yield Check("bytes, Muon exchanges", case, traffic.muon_exchange(work), payload["exchanged"])
            yield Check("bytes, most in the backward, FSDP", case, formulas.peak_bytes(work), payload["peak"])


def autocast_check() -> Check:
    """Bytes that runs keep under bfloat16 autocast, in shares of float32's: what scaling_paper.py takes for granted."""
    model = HybridConfig(
        vocab_size=64,
        width=256,
        layers=("attn", "attn", "attn", "gdn"),
        mlp_width=896,
        num_heads=8,
        num_kv_heads=2,
        fast_heads=3,
        key_size=64,
        value_size=128,
    )
    work = Work(model, SleepConfig(window_size=256, num_sleep_passes=2), Backward(), 1, (False, True), 16)
    shares = [measured.live_bytes(work, dtype)[0] for dtype in (torch.bfloat16, None)]
    return Check("bytes, bfloat16 of float32", "as on paper, width 256", paper.AUTOCAST_SHARE, shares[0] / shares[1])


def main() -> None:
    arguments = _arguments()
    started = time.perf_counter()
    found = [*checks(), autocast_check()]
    card = {
        "kind": "scaling",
        "name": "scaling",
        "commit": commit_id(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware().model_dump(),
        "wall_time_s": round(time.perf_counter() - started, 1),
        "checks": [check._asdict() for check in found],
        "paper": paper.everything(),
    }
    if arguments.out is not None:
        write_atomic(arguments.out, (json.dumps(card, indent=1) + "\n").encode())
        save_figure(figure(card), arguments.out.with_suffix(".png"))
    print(json.dumps(result(card)) if arguments.json else "\n\n".join(tables(card).values()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="card (.json) to write, with a figure beside it")
    parser.add_argument("--json", action="store_true", help="print the worst deviation as one JSON object")
    return parser.parse_args()


def result(card: dict[str, Any]) -> dict[str, Any]:
    """The worst deviation of a formula from what was counted."""
    worst: dict[str, float] = {}
    for check in (Check(**row) for row in card["checks"]):
        worst[check.quantity] = max(worst.get(check.quantity, 0.0), abs(check.deviation))
    ratio = max(worst.values())
    details = {quantity: round(deviation, 4) for quantity, deviation in worst.items()}
    return {
        "name": card["name"],
        "ratio": round(ratio, 4),
        "target": TARGET,
        "met": ratio <= TARGET,
        "details": details,
    }


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
