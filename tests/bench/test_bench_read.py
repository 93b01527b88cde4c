"""Reading beside prefill: right first, then timed, and the verdicts follow from the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_benchmark import PEAK, Parts, clock, never
from tiny import BASE
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from reverie.bench import read
from reverie.bench.card import number
from reverie.bench.read import LATE, PREFILL, SMOLLM2, TARGETS, WIDTH_256, measure
from reverie.errors import UserError
from reverie.hf import bases
from reverie.model import HybridConfig
from reverie.sleep import side_by_side

pytestmark = [pytest.mark.slow, pytest.mark.hf]


@pytest.fixture(autouse=True)
def tiny(tiny_config: Callable[..., HybridConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of few blocks, and short windows, under the names of the sides."""

    def load(name: str) -> PreTrainedModel:
        assert name == "smollm2"
        sizes: dict[str, Any] = BASE | {"num_hidden_layers": 30, "vocab_size": 1024, "max_position_embeddings": 4096}
        return AutoModelForCausalLM.from_config(LlamaConfig(**sizes))

    monkeypatch.setattr(bases, "load_base", load)
    small = tiny_config("attn", "gdn", "attn", "gdn", vocab_size=1024, mlp_width=8)
    monkeypatch.setattr(read, "HYBRID", small)
    monkeypatch.setattr(read, "CHECKED", 96)


def test_all_sides_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    times: dict[str, float] = {}

    def some(calls: Any, **rest: Any) -> Any:
        for name, call in calls.items():
            call()
            times.setdefault(name, 0.01 * (1 + len(times)))
        return clock(times)(calls, **rest)

    monkeypatch.setattr(read, "alternate", some)
    parts = Parts()
    findings = measure(PEAK, parts, tokens=160)
    parts.assert_whole()
    targets, rows = findings.details.tables.values()
    assert [row["what"] for row in targets] == [target.what for target in TARGETS]
    assert {row["model"] for row in rows} == {SMOLLM2, WIDTH_256}
    by_side = {row["side"]: row for row in rows if row["model"] == SMOLLM2}
    assert number(by_side[PREFILL], "over_prefill") == 1.0
    assert number(by_side["N = 2, L = 32"], "over_L_512") == pytest.approx(
        times["N = 2, L = 32"] / times["N = 2, L = 512"]
    )
    assert number(by_side[LATE], "over_prefill") == pytest.approx(times[LATE] / times[PREFILL])
    assert findings.ratio == pytest.approx(number(by_side["N = 1, L = 512"], "over_prefill"), rel=1e-4)
    verdicts = {row["what"]: row["verdict"] for row in targets}
    assert all(
        (number(row, "ratio") <= number(row, "target_at_most")) == (verdicts[row["what"]] == "met") for row in targets
    )


def test_windows_that_are_wrong_side_by_side_get_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    right = side_by_side._together
    monkeypatch.setattr(side_by_side, "_together", lambda windows: right(windows) * 1.1)
    monkeypatch.setattr(read, "alternate", never)
    with pytest.raises(UserError, match="windows of 32 side by side: a fast weight is off by"):
        measure(PEAK, Parts(), tokens=160)
    assert torch.is_grad_enabled()
