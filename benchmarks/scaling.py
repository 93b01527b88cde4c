"""What training with sleep costs: formulas beside counts of small models, and at 1.4B, 8B and 70B on paper.

    python benchmarks/scaling.py --out results/scaling.json

takes a step of small models while operations and bytes are counted, compares the counts with the formulas, and applies
the formulas to large models. Leaves a card, and prints the tables of docs/SCALING.md.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import publish
import scaling_paper as paper
import torch
import torch.nn.functional as F
from torch import Tensor

from reverie.bench import account
from reverie.bench.account import Work
from reverie.bench.card import outcome
from reverie.bench.count import LiveBytes, flop_counter
from reverie.bench.tables import markdown_table
from reverie.model import HybridConfig, LanguageModel, new_model
from reverie.sleep import SleepConfig, rollout
from reverie.sleep.gradients import Backward

TARGET = 0.05  # of what is counted


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
    "N = 3": small(),
    "N = 3, L = 64": small(window=64),
    "N = 4, blocks 0 and 1 looped": small(passes=4, looped=(0, 2)),
    "N = 3, labels in windows 1 and 3": small(labelled="-x-x"),
    "gdn and jet, blocks 1 to 3 looped": small(("gdn", "attn", "attn", "jet", "attn"), looped=(1, 4)),
    "transformer": small(("attn",) * 4, labelled="-xxx"),
    "pass, N = 4, labels in windows 1 and 3": small(passes=4, labelled="-x-x", activation_checkpoint="pass"),
    "pass, blocks 1 and 2 looped": small(looped=(1, 3), activation_checkpoint="pass"),
    "window, jet, N = 2": small(("attn", "jet", "attn", "jet"), passes=2, activation_checkpoint="window"),
    "window, N = 4, blocks 0 and 1 looped": small(passes=4, looped=(0, 2), activation_checkpoint="window"),
    "last 2 of 4 passes": small(passes=4, bptt_passes=2),
    "labels reach 1 window": small(bptt_windows=1),
}


def batch_of(work: Work) -> tuple[Tensor, Tensor]:
    """Tokens and loss mask: the labels stand at the end of labelled windows, the same number in each."""
    random, L = torch.Generator().manual_seed(0), work.sleep.window_size
    length = work.tokens or L * len(work.labelled)
    tokens = torch.randint(work.model.vocab_size, (work.batch, length), generator=random)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    each = work.scored // (work.batch * sum(work.labelled))
    for window, labelled in enumerate(work.labelled):
        end = window * L + work.length(window)
        mask[:, end - each : end] = labelled
    return tokens, mask


def loss_of(work: Work, model: LanguageModel) -> Tensor:
    tokens, mask = batch_of(work)
    logits, _ = rollout(model, tokens, mask, work.sleep, backward=work.backward)
    return F.cross_entropy(logits.float(), tokens[mask])


def operations(work: Work) -> tuple[int, int]:
    """Operations of the forward, and of the backward with what it makes again."""
    model, counter = new_model(work.model, 0), flop_counter()
    with counter:
        loss = loss_of(work, model)
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops() - forward


def live_bytes(work: Work, dtype: torch.dtype | None = None) -> tuple[int, int]:
    """Bytes alive between forward and backward, casts of parameters left out, and the most alive in the backward."""
    model = new_model(work.model, 0)
    loss_of(work, model)  # rotary tables are made once
    with LiveBytes() as live:
        with nullcontext() if dtype is None else torch.autocast("cpu", dtype):
            loss = loss_of(work, model)
        gc.collect()
        kept = live.bytes
        live.peak = 0
        loss.backward()
    casts = 0 if dtype is None else sum(p.numel() * dtype.itemsize for p in model.parameters() if p.ndim == 2)
    return kept - casts, live.peak


def checks() -> Iterator[Check]:
    """Predictions beside counts."""
    for case, work in CASES.items():
        forward, backward = operations(work)
        expected = account.operations(work)
        yield Check("operations, forward", case, expected.forward, forward)
        yield Check("operations, backward", case, expected.backward + expected.recompute, backward)
        if work.backward.bptt_passes is None and work.backward.bptt_windows is None:
            kept, peak = live_bytes(work)
            yield Check("bytes, kept for the backward", case, account.kept_bytes(work), kept)
            yield Check("bytes, most in the backward", case, account.peak_bytes(work), peak)
    yield autocast_check()


def autocast_check() -> Check:
    """Bytes that runs keep under bfloat16 autocast, in shares of float32's: what scaling_paper.py takes for granted."""
    sizes = {"vocab_size": 64, "width": 256, "mlp_width": 896, "num_heads": 8, "num_kv_heads": 2}
    layers = ("attn", "attn", "attn", "gdn")
    model = HybridConfig.model_validate({**sizes, "layers": layers, "fast_heads": 3, "key_size": 64, "value_size": 128})
    work = Work(model, SleepConfig(window_size=256, num_sleep_passes=2), Backward(), 1, (False, True), 16)
    half, full = (live_bytes(work, dtype)[0] for dtype in (torch.bfloat16, None))
    return Check("bytes, bfloat16 of float32", "as on paper, width 256", paper.AUTOCAST_SHARE, half / full)


def result(card: dict[str, Any]) -> dict[str, Any]:
    """The worst deviation of a formula from what was counted."""
    worst: dict[str, float] = {}
    for check in (Check(**row) for row in card["checks"]):
        worst[check.quantity] = max(worst.get(check.quantity, 0.0), abs(check.deviation))
    ratio = max(worst.values())
    details = {quantity: round(deviation, 4) for quantity, deviation in worst.items()}
    return outcome(card["name"], round(ratio, 4), TARGET, ratio <= TARGET, details)


def tables(card: dict[str, Any]) -> str:
    """The tables of docs/SCALING.md: for each quantity how many cases, one of them, and how far off the formula is."""
    body, found = [], [Check(**row) for row in card["checks"]]
    for quantity in dict.fromkeys(check.quantity for check in found):
        cases = [check for check in found if check.quantity == quantity]
        off = [100 * check.deviation for check in cases]
        shown = next((check for check in cases if check.case == "N = 3"), cases[0])
        numbers = [f"{x:,.0f}" if x > 10 else f"{x:.2f}" for x in (shown.predicted, shown.measured)]
        body.append([quantity, str(len(cases)), shown.case, *numbers, f"{min(off):+.1f} to {max(off):+.1f}"])
    checked = markdown_table(["quantity", "cases", "such as", "formula", "counted", "formula off, %"], body)
    texts = card["paper"]["texts"]
    rows = [[name, *(_short(text[name]) for text in texts.values())] for name in next(iter(texts.values()))]
    return f"{checked}\n\n{markdown_table(['a text', *texts], rows)}"


def _short(value: float) -> str:
    """1.49e+09 as 1.49 G."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


def main() -> None:
    arguments, origin = publish.options(__doc__).parse_args(), publish.begin()
    found = [check._asdict() for check in checks()]
    texts = {name: paper.text(name) for name in paper.MODELS}
    card = {"kind": "scaling", "name": "scaling", **origin(), "checks": found, "paper": {"texts": texts}}
    publish.publish(arguments, card, tables, result)


if __name__ == "__main__":
    publish.run(main)
