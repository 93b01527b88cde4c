"""A token awake: right first, then timed; flat in time and memory, however much was consolidated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_benchmark import PEAK, Calls, Parts, never, one_round
from torch import Tensor

from reverie.bench import wake
from reverie.bench.card import Row, number
from reverie.bench.timer import Timing
from reverie.bench.wake import TIME_TARGET, check_sleep, measure
from reverie.errors import UserError
from reverie.model import HybridConfig, HybridLM
from reverie.sleep import Context, SleepConfig, consolidate
from reverie.sleep.generate import token_by_token

pytestmark = pytest.mark.slow

L = 4
STOPS = (8, 40, 80)


@pytest.fixture
def config(tiny_config: Callable[..., HybridConfig]) -> HybridConfig:
    return tiny_config("attn", "gdn", "attn", "gdn")


def measured(config: HybridConfig, parts: Parts | None = None) -> wake.Findings:
    return measure(PEAK, parts or Parts(), config, L, STOPS, passes=(1, 2))


def of(rows: list[Row], model: str) -> list[Row]:
    return [row for row in rows if row["model"] == model]


def test_a_model_measured(config: HybridConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wake, "alternate", one_round)
    parts = Parts()
    findings = measured(config, parts)
    parts.assert_whole()
    targets, tokens, memory, consolidation = findings.details.tables.values()
    for rows in (tokens, memory):
        assert [(row["model"], row["tokens"]) for row in rows] == [
            (model, stop) for model in ("sleep, N = 1", "sleep, N = 2") for stop in STOPS
        ]
    assert all(number(row, "ms") > 0 for row in tokens)
    assert len(targets) == 1 + 2 * 3
    assert findings.ratio == pytest.approx(number(targets[4], "ratio"), rel=1e-4)
    assert targets[4]["what"] == "ms: 80 over 8 tokens, sleep, N = 2"
    assert [(row["N"], row["tokens"]) for row in consolidation] == [(1, 80), (2, 80)]
    assert all(row["tokens_per_s"] > 0 for row in consolidation)  # type: ignore[operator]


def test_what_is_kept_does_not_grow(config: HybridConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wake, "alternate", one_round)
    memory = measured(config).details.tables["memory"]
    for model in ("sleep, N = 1", "sleep, N = 2"):
        assert len({row["context_MB"] for row in of(memory, model)}) == 1


def invented(seconds: Callable[[str, int], list[float]]) -> Callable[..., dict[str, Timing]]:
    """In place of `alternate`: rounds by model and tokens."""

    def timed(calls: Calls, **_: Any) -> dict[str, Timing]:
        sides = {name: name.rsplit(", ", 1) for name in calls}
        return {name: Timing(rounds=seconds(model, int(tokens))) for name, (model, tokens) in sides.items()}

    return timed


def drifting(model: str, tokens: int) -> list[float]:
    """A machine that gets slower all the time; a token costs more at N = 2, and after 80 tokens."""
    cost = {"sleep, N = 1": 1.0, "sleep, N = 2": 1.01}[model]
    late = 1.1 if (model, tokens) == ("sleep, N = 2", 80) else 1.0
    return [4e-3 * cost * late * drift for drift in (1.0, 2.0, 3.0)]


def test_ratios_are_of_the_same_round(config: HybridConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wake, "alternate", invented(drifting))
    findings = measured(config)
    assert findings.ratio == pytest.approx(1.1)
    assert findings.target == TIME_TARGET
    assert not findings.reached
    targets, tokens, *_ = findings.details.tables.values()
    by_what = {str(row["what"]): (row["ratio"], row["verdict"]) for row in targets}
    assert by_what["ms: sleep, N = 2 over sleep, N = 1"] == (pytest.approx(1.01), "met")  # the median over all stops
    assert by_what["ms: 80 over 8 tokens, sleep, N = 1"] == (1.0, "met")
    assert by_what["ms: 80 over 8 tokens, sleep, N = 2"] == (pytest.approx(1.1), "not met")
    assert by_what["memory of the context: 80 over 8 tokens, sleep, N = 2"] == (1.0, "met")
    assert [row["ms"] for row in of(tokens, "sleep, N = 1")] == [pytest.approx(8 / L)] * 3  # a call is a window
    assert [row["over_first"] for row in of(tokens, "sleep, N = 2")] == [1.0, 1.0, pytest.approx(1.1)]


@pytest.mark.parametrize("stop", STOPS)
def test_a_wrong_token_is_not_timed(config: HybridConfig, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    calls: list[int] = []

    def wrong_after_stop(model: HybridLM, tokens: Tensor, context: Context, config: SleepConfig) -> Any:
        calls.append(tokens.shape[1])
        logits, end = token_by_token(model, tokens, context, config)
        return (logits * 1.001 if calls.count(L) == 1 + STOPS.index(stop) else logits), end

    monkeypatch.setattr(wake, "check_sleep", lambda *_: None)
    monkeypatch.setattr(wake, "token_by_token", wrong_after_stop)
    monkeypatch.setattr(wake, "alternate", never)
    with pytest.raises(UserError, match=f"^nothing is measured: N = 1, a window token by token after {stop} tokens is"):
        measured(config)


def test_nothing_is_consolidated_before_the_check(config: HybridConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> None:
        raise UserError("nothing is measured")

    monkeypatch.setattr(wake, "check_sleep", wrong)
    monkeypatch.setattr(wake, "sleep_on", never)
    with pytest.raises(UserError, match="nothing is measured"):
        measured(config)


def test_shipped_stops_are_whole_windows() -> None:
    assert all(stop % wake.WINDOW == 0 for stop in wake._marks(wake.STOPS, wake.WINDOW))
    assert set(wake.STOPS) <= set(wake._marks(wake.STOPS, wake.WINDOW))


# -- the text without an end


@pytest.mark.parametrize("passes", [1, 3])
def test_a_text_in_pieces_is_the_same_text(tiny_model: Callable[..., HybridLM], passes: int) -> None:
    model, config = tiny_model("attn", "gdn", "attn", "gdn"), SleepConfig(window_size=L, num_sleep_passes=passes)
    begin = wake.start(model)
    whole = wake.sleep_on(model, config, begin, 5 * L)
    stop = wake.sleep_on(model, config, wake.sleep_on(model, config, begin, 2 * L), 3 * L)
    pieces = wake.sleep_on(model, config, stop, 5 * L)
    assert (whole.tokens, pieces.tokens) == (5 * L, 5 * L)
    assert 0 < stop.seconds < pieces.seconds
    for mine, other in zip(pieces.context.state.fast_weights, whole.context.state.fast_weights, strict=True):
        assert mine is other is None or torch.allclose(mine, other)  # type: ignore[arg-type]
    assert set(whole.context.state.cache) == {None}
    assert not torch.equal(whole.context.state.fast_weights[1], stop.context.state.fast_weights[1])  # type: ignore[arg-type]


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("window_size", [6, 70])  # 70: more than one chunk of the kernel
def test_it_is_right(config: HybridConfig, window_size: int, passes: int) -> None:
    check_sleep(config, SleepConfig(window_size=window_size, num_sleep_passes=passes))


def without_sleep(model: HybridLM, tokens: Tensor, context: Context, config: SleepConfig) -> Context:
    return consolidate(model, tokens, context, config.model_copy(update={"num_sleep_passes": 1}))


def without_eviction(model: HybridLM, tokens: Tensor, context: Context, config: SleepConfig) -> tuple[Tensor, Context]:
    return token_by_token(model, tokens, context, config.model_copy(update={"window_size": 100}))


@pytest.mark.parametrize(
    ("name", "wrong", "begin"),
    [("consolidate", without_sleep, f"from {2 * L} on"), ("token_by_token", without_eviction, "from 0 on")],
)
def test_a_wrong_sleep_is_refused(
    config: HybridConfig, monkeypatch: pytest.MonkeyPatch, name: str, wrong: Any, begin: str
) -> None:
    monkeypatch.setattr(wake, name, wrong)
    with pytest.raises(UserError, match=f"^nothing is measured: N = 3, token by token {begin}, of the .* is off by"):
        check_sleep(config, SleepConfig(window_size=L, num_sleep_passes=3))
