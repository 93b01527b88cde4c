"""A text without an end: consolidated in any pieces, decoded token by token, and never more to remember."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reverie.bench import sleeper
from reverie.bench.sleeper import Sleeper, check_sleep, resident_bytes
from reverie.errors import UserError
from reverie.model import HybridConfig, HybridLM
from reverie.sleep import Context, SleepConfig, forget

L = 6


def asleep(model: HybridLM, passes: int) -> Sleeper:
    return Sleeper(model, SleepConfig(window_size=L, num_sleep_passes=passes))


@pytest.mark.parametrize("passes", [1, 3])
def test_a_text_in_pieces_is_the_same_text(tiny_model: Callable[..., HybridLM], passes: int) -> None:
    reader = asleep(tiny_model("attn", "gdn", "attn", "gdn"), passes)
    whole = reader.consolidate(reader.start(), 5 * L)
    stop = reader.consolidate(reader.consolidate(reader.start(), 2 * L), 3 * L)
    pieces = reader.consolidate(stop, 5 * L)
    assert (whole.tokens, pieces.tokens) == (5 * L, 5 * L)
    assert 0 < stop.seconds < pieces.seconds
    for mine, other in zip(pieces.context.state.fast_weights, whole.context.state.fast_weights, strict=True):
        assert mine is other is None or torch.equal(mine, other)  # type: ignore[arg-type]
    assert set(whole.context.state.cache) == {None}
    assert not torch.equal(whole.context.state.fast_weights[1], stop.context.state.fast_weights[1])  # type: ignore[arg-type]


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("window_size", [6, 70])  # 70: more than one chunk of the kernel
def test_it_is_right(tiny_config: Callable[..., HybridConfig], window_size: int, passes: int) -> None:
    check_sleep(tiny_config("attn", "gdn", "attn", "gdn"), window_size, passes)


def without_sleep(_: Any, context: Context, config: SleepConfig) -> Context:
    return forget(context, config)


def without_eviction(model: Any, token: Any, context: Context, config: SleepConfig) -> Any:
    return right_read(model, token, context, config.model_copy(update={"window_size": 100}))


right_read = sleeper.read


@pytest.mark.parametrize(
    ("name", "wrong", "begin"), [("sleep", without_sleep, f"from {2 * L} on"), ("read", without_eviction, "from 0 on")]
)
def test_a_wrong_sleep_is_refused(
    tiny_config: Callable[..., HybridConfig], monkeypatch: pytest.MonkeyPatch, name: str, wrong: Any, begin: str
) -> None:
    config = tiny_config("attn", "gdn", "attn", "gdn")
    if name == "read":  # the specification, which reads the text in one call, stays right
        monkeypatch.setattr(
            Sleeper, "decode", lambda self, tokens, context: wrong(self.model, tokens, context, self.config)
        )
    else:
        monkeypatch.setattr(sleeper, name, wrong)
    with pytest.raises(UserError, match=f"^nothing is measured: N = 3, token by token {begin}, of the .* is off by"):
        check_sleep(config, L, 3)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="elsewhere only the peak is known")
def test_resident_memory_comes_and_goes() -> None:
    before = resident_bytes()
    held = torch.ones(50_000_000)
    with_it = resident_bytes()
    del held
    assert with_it - before == pytest.approx(200e6, rel=0.1)
    assert resident_bytes() - before < 20e6


def test_resident_memory_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = resident_bytes()
    monkeypatch.setattr(sleeper, "Path", lambda path: tmp_path / "nowhere")
    assert resident_bytes() >= 0.9 * now  # the most so far
    monkeypatch.setattr(sleeper.sys, "platform", "win32")
    with pytest.raises(UserError, match="Windows does not"):
        resident_bytes()
