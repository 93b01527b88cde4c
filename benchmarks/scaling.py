"""What training with sleep costs: formulas beside measurements here, and at 1.4B, 8B and 70B on paper.

    python benchmarks/scaling.py --out results/scaling.json

trains small models for a step while operations, bytes and collectives are counted, compares the counts with the
formulas, and applies the formulas to large models. Leaves a card and a figure, and prints the tables of
docs/SCALING.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import publish
import scaling_measured as measured
import scaling_paper as paper
import scaling_traffic as traffic
import torch
from scaling_tables import figure, tables

from reverie.bench import account
from reverie.bench.account import Work
from reverie.bench.card import outcome
from reverie.model import HybridConfig
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
    sizes = {"vocab_size": 96, "width": 48, "mlp_width": 128, "num_heads": 4, "num_kv_heads": 2}
    model = HybridConfig.model_validate({**sizes, "layers": layers, "fast_heads": 3, "key_size": 12, "value_size": 24})
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
        states, muon = measured.optimisers(CASES[case])
        yield Check("bytes, optimisers", case, account.optimizer_bytes(CASES[case].model), states)
        yield Check("operations, Muon", case, account.muon_operations(CASES[case].model), muon)
    for case, work in CASES.items():
        forward, backward = measured.operations(work)
        expected = account.operations(work)
        yield Check("operations, forward", case, expected.forward, forward)
        yield Check("operations, backward", case, expected.backward + expected.recompute, backward)
    for case, work in CASES.items():
        if work.backward.bptt_passes is None and work.backward.bptt_windows is None:
            kept, peak = measured.live_bytes(work)
            yield Check("bytes, kept for the backward", case, account.kept_bytes(work), kept)
            yield Check("bytes, most in the backward", case, account.peak_bytes(work), peak)
    yield from _traffic_checks()


def _traffic_checks() -> Iterator[Check]:
    cases: list[tuple[str, Parallel, bool]] = [(case, "ddp", False) for case in ("N = 1", "N = 3")]
    for case in TRAFFIC_CASES:
        cases.extend([(case, "fsdp", False), (case, "fsdp", True)])
    found = measured.traffic([(CASES[case], how, every_run) for case, how, every_run in cases])
    for (case, how, every_run), payload in zip(cases, found, strict=True):
        work = CASES[case]
        if how == "ddp":
            yield Check("bytes, DDP reduces", case, traffic.ddp(work), payload["reduced"])
            continue
        gathered, scattered = traffic.fsdp(work, 2, once=not every_run)
        name = f"{case}, {'every run gathers' if every_run else 'gathered once'}"
        yield Check("bytes, FSDP gathers", name, gathered, payload["gathered"])
        yield Check("bytes, FSDP scatters", name, scattered, payload["scattered"])
        if not every_run:
            yield Check("bytes, Muon exchanges", case, traffic.muon_exchange(work), payload["exchanged"])
            yield Check("bytes, most in the backward, FSDP", case, account.peak_bytes(work), payload["peak"])


def autocast_check() -> Check:
    """Bytes that runs keep under bfloat16 autocast, in shares of float32's: what scaling_paper.py takes for granted."""
    sizes = {"vocab_size": 64, "width": 256, "mlp_width": 896, "num_heads": 8, "num_kv_heads": 2}
    layers = ("attn", "attn", "attn", "gdn")
    model = HybridConfig.model_validate({**sizes, "layers": layers, "fast_heads": 3, "key_size": 64, "value_size": 128})
    work = Work(model, SleepConfig(window_size=256, num_sleep_passes=2), Backward(), 1, (False, True), 16)
    shares = [measured.live_bytes(work, dtype)[0] for dtype in (torch.bfloat16, None)]
    return Check("bytes, bfloat16 of float32", "as on paper, width 256", paper.AUTOCAST_SHARE, shares[0] / shares[1])


def main() -> None:
    arguments, origin = publish.options(__doc__).parse_args(), publish.begin()
    found = [*checks(), autocast_check()]
    card = {
        "kind": "scaling",
        "name": "scaling",
        **origin(),
        "checks": [check._asdict() for check in found],
        "paper": {"texts": {name: paper.text(name) for name in paper.MODELS}},
    }
    publish.publish(arguments, card, figure, lambda card: "\n\n".join(tables(card).values()), result)


def result(card: dict[str, Any]) -> dict[str, Any]:
    """The worst deviation of a formula from what was counted."""
    worst: dict[str, float] = {}
    for check in (Check(**row) for row in card["checks"]):
        worst[check.quantity] = max(worst.get(check.quantity, 0.0), abs(check.deviation))
    ratio = max(worst.values())
    details = {quantity: round(deviation, 4) for quantity, deviation in worst.items()}
    return outcome(card["name"], round(ratio, 4), TARGET, ratio <= TARGET, details)


if __name__ == "__main__":
    publish.run(main)
