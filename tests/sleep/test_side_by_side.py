"""Windows side by side leave what one window after the other leaves, after each of them, and are seen as they are."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch
from algorithm_1 import L, MakeModel, assert_same, tensors
from torch import Tensor

from reverie.model import HybridLM, State
from reverie.sleep import Context, SleepConfig, consolidate, read, side_by_side

Seen = list[tuple[int, Tensor, State, State]]


def slept_over(model: Any, tokens: Tensor, context: Context, config: SleepConfig, lengths: Any) -> Any:
    """The contexts after each window, and what was observed."""
    contexts, seen = list[Context](), Seen()
    with torch.no_grad():
        consolidate(
            model,
            tokens,
            context,
            config,
            lengths=lengths,
            on_window=lambda i, context: contexts.append(context),
            observe=lambda *event: seen.append(event),
        )
    return contexts, seen


def any_case(draw: random.Random, tiny_model: MakeModel) -> tuple[HybridLM, SleepConfig]:
    kinds = [draw.choice(["attn", "gdn", "jet"]) for _ in range(draw.randint(1, 5))]
    more = {"value_embedding": draw.random() < 0.3, "injection": draw.choice(["none", "add", "gate"])}
    more |= {"update_rule": draw.choice(["gated_delta", "delta", "hebbian"])}
    model = tiny_model(*kinds, **more)
    a = draw.randrange(len(kinds))
    loop = draw.choice([None, (a, draw.randint(a + 1, len(kinds)))])
    both_ways = "attn" in kinds and draw.random() < 0.3
    N = draw.randint(1, 4)
    return model, SleepConfig(window_size=L, num_sleep_passes=N, looped_blocks=loop, bidirectional_sleep=both_ways)


@pytest.mark.parametrize("seed", range(40))
def test_any_of_them(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Whatever the blocks, loop, passes and rows, also from the middle of a text, and where rows end."""
    draw = random.Random(seed)
    model, config = any_case(draw, tiny_model)
    B, T = draw.randint(1, 3), draw.randint(1, 9 * L)
    lengths = draw.choice([None, [draw.randint(1, T) for _ in range(B)]])
    tokens = torch.randint(model.config.vocab_size, (B, T + 2 * L), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        begin = draw.choice([0, 3, L, L + 2])
        context = Context.empty(model)
        if begin and lengths is None:
            _, context = read(model, tokens[:, :begin], context, config)
    tokens = tokens[:, 2 * L :]
    wanted, told = slept_over(model, tokens, context, config, lengths)
    monkeypatch.setattr(side_by_side, "MOST_TOKENS", 0)
    contexts, seen = slept_over(model, tokens, context, config, lengths)
    assert len(contexts) == len(wanted)
    for one, other in zip(contexts, wanted, strict=True):
        assert_same(tensors(one.state.fast_weights), tensors(other.state.fast_weights))
        assert (one.length, torch.as_tensor(one.passes).tolist()) == (
            other.length,
            torch.as_tensor(other.passes).tolist(),
        )
    if lengths is None:
        assert [n for n, *_ in seen] == [n for n, *_ in told]
        for (_, _, before, after), (_, _, old, new) in zip(seen, told, strict=True):
            assert_same(tensors(after.fast_weights), tensors(new.fast_weights))
            assert_same(tensors(before.fast_weights), tensors(old.fast_weights))


def test_a_prompt_is_read_so_too(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the newest logits are wanted; from the middle of a window."""
    model, config = tiny_model("attn", "gdn", "jet"), SleepConfig(window_size=L, num_sleep_passes=2)
    tokens = torch.randint(model.config.vocab_size, (2, 8 * L), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, context = read(model, tokens[:, :3], Context.empty(model), config)
        logits, context = read(model, tokens[:, 3:], context, config, newest_only=True)
        whole, end = read(model, tokens, Context.empty(model), config)
    assert_same([logits[:, -1], *tensors(context.state)], [whole[:, -1], *tensors(end.state)])


def calls_over(model: HybridLM, config: SleepConfig, tokens: Tensor) -> Counter[int]:
    """How often each block ran."""
    calls = Counter[int]()
    hooks = [block.register_forward_hook(lambda *_, i=i: calls.update([i])) for i, block in enumerate(model.layers)]
    with torch.no_grad():
        consolidate(model, tokens, Context.empty(model), config)
    for hook in hooks:
        hook.remove()
    return calls


@pytest.mark.parametrize(("N", "loop", "wanted"), [(1, None, [1, 1, 1]), (2, None, [9] * 3), (3, (1, 2), [1, 17, 1])])
def test_calls_are_shared(tiny_model: MakeModel, N: int, loop: tuple[int, int] | None, wanted: list[int]) -> None:
    """Of eight windows one call where they need not wait; of N passes over a looped block N − 1, and one more."""
    model, tokens = tiny_model("attn", "gdn", "gdn"), torch.ones(1, 8 * L, dtype=torch.long)
    calls = calls_over(model, SleepConfig(window_size=L, num_sleep_passes=N, looped_blocks=loop), tokens)
    assert [calls[i] for i in range(3)] == wanted


def test_where_gradients_or_other_models_want_one_after_the_other(tiny_model: MakeModel) -> None:
    model = tiny_model("attn", "gdn")
    empty, config = Context.empty(model), SleepConfig(window_size=L)

    class Other(HybridLM):
        def blocks(self, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().blocks(*args, **kwargs)

    assert side_by_side.group_size(model, empty, config, 1) == 1  # with gradients
    with torch.no_grad():
        assert side_by_side.group_size(model, empty, config, 1) > 1
        assert side_by_side.group_size(Other(model.config), empty, config, 1) == 1
        for changed in ({"eviction": "sliding"}, {"tolerance": 0.1, "num_sleep_passes": 2}):
            assert side_by_side.group_size(model, empty, config.model_copy(update=changed), 1) == 1


def test_fast_weights_after_all_of_them_fit_into_memory(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("attn", "gdn", "jet")
    empty, config = Context.empty(model), SleepConfig(window_size=1)
    held: Any = model.window_bytes
    with torch.no_grad():
        state = consolidate(model, torch.ones(1, 1, dtype=torch.long), empty, config).state
        assert held == sum(4 * x.numel() for x in state.fast_weights if x is not None)
        for B, windows in ((1, 12), (5, 2), (20, 1)):
            monkeypatch.setattr(side_by_side, "MOST_BYTES", 12 * held)
            assert side_by_side.group_size(model, empty, config, B) == windows


@pytest.mark.parametrize("part", ["mixer", "block", "model"])
def test_what_was_put_in_the_place_of_a_part_is_not_given_windows(tiny_model: MakeModel, part: str) -> None:
    """It takes the arguments that it took before."""
    model, tokens, config = tiny_model("gdn", "gdn"), torch.ones(1, 4 * L, dtype=torch.long), SleepConfig(window_size=L)
    with torch.no_grad():
        wanted = consolidate(model, tokens, Context.empty(model), config)
        of: Any = {"mixer": model.layers[0].mixer, "block": model.layers[0], "model": model}[part]
        name = "blocks" if part == "model" else "forward"
        before, calls = getattr(of, name), list[dict[str, Any]]()

        def own(*args: Any, **kwargs: Any) -> Any:
            calls.append(kwargs)
            return before(*args, **kwargs)

        setattr(of, name, own)
        got = consolidate(model, tokens, Context.empty(model), config)
    assert calls
    assert not any("windows" in call for call in calls)
    assert_same(tensors(got.state), tensors(wanted.state))


def test_lengths_beyond_the_text(tiny_model: MakeModel) -> None:
    model, config = tiny_model("attn", "gdn"), SleepConfig(window_size=L)
    tokens = torch.randint(model.config.vocab_size, (2, 4 * L + 1), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = consolidate(model, tokens, Context.empty(model), config)
        got = consolidate(model, tokens, Context.empty(model), config, lengths=[4 * L + 1, 9 * L])
        assert_same(tensors(got.state), tensors(wanted.state))
