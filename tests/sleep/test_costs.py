"""Nothing too much: no pass that nobody reads, no tensor that grows with the text, nothing overwritten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from algorithm_1 import LAYERS, L, MakeModel, asleep, assert_same, each_eviction, labels, some_passes, tensors, text

from reverie.model import HybridLM, KVCache
from reverie.sleep import Context, read, rollout, sleep, wake


@each_eviction
@some_passes
def test_nothing_is_updated_in_place(tiny_model: MakeModel, eviction: str, N: int) -> None:
    model, config = tiny_model(*LAYERS["jet"]), asleep(N, eviction)
    _, context = read(model, text(8), Context.empty(model), config)  # in the middle of window 2
    before = [x.clone() for x in tensors(context)]
    versions = [x._version for x in tensors(context)]
    _, full = wake(model, text(2), context, config)
    full_before = [x.clone() for x in tensors(full)]
    sleep(model, full, config)
    assert_same(tensors(full), full_before, 0)
    assert_same(tensors(context), before, 0)
    assert [x._version for x in tensors(context)] == versions


@contextmanager
def counted(model: HybridLM) -> Iterator[Counter[str]]:
    """Calls of each module, by name."""
    calls: Counter[str] = Counter()

    def hook(name: str) -> Callable[..., None]:
        return lambda *_: calls.update([name])

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
    yield calls
    for handle in handles:
        handle.remove()


def per_block(calls: Counter[str], part: str) -> list[int]:
    return [calls[f"layers.{i}.{part}"] for i in range(5)]


# By hand for attn gdn attn gdn attn: what one window costs when nobody reads its logits. The last fast weights are in
# block 3, so under hard eviction block 4 runs only where its h starts another pass, and the last run of block 3 only
# writes.
COSTS = {
    # (N, eviction, loop): (mixers, their output projections, MLPs), per block
    (1, "hard", None): ([1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]),
    (1, "hard", (1, 3)): ([1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]),
    (1, "sliding", None): ([1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]),
    (3, "hard", None): ([3, 3, 3, 3, 2], [3, 3, 3, 2, 2], [3, 3, 3, 2, 2]),
    (3, "sliding", None): ([3, 3, 3, 3, 3], [3, 3, 3, 3, 2], [3, 3, 3, 3, 2]),
    (3, "hard", (1, 3)): ([1, 3, 3, 1, 0], [1, 3, 3, 0, 0], [1, 3, 3, 0, 0]),
    (3, "sliding", (1, 3)): ([1, 3, 3, 1, 1], [1, 3, 3, 1, 0], [1, 3, 3, 1, 0]),
    (3, "hard", (3, 5)): ([1, 1, 1, 3, 2], [1, 1, 1, 2, 2], [1, 1, 1, 2, 2]),
    (3, "hard", (4, 5)): ([1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]),
}


@pytest.mark.parametrize(("N", "eviction", "loop"), COSTS)
def test_what_nobody_reads_is_not_computed(
    tiny_model: MakeModel, N: int, eviction: str, loop: tuple[int, int] | None
) -> None:
    model = tiny_model(*LAYERS["gdn"])
    costs = []
    for length in (7, 12):  # one window asleep and one with labels; two asleep and one with labels
        with counted(model) as calls:
            rollout(model, text(length), torch.arange(length).expand(2, -1) == length - 1, asleep(N, eviction, loop))
        costs.append(calls)
        assert calls["lm_head"] == 1
    costs[1].subtract(costs[0])
    mixers, outputs, mlps = COSTS[N, eviction, loop]
    assert per_block(costs[1], "mixer") == mixers
    assert per_block(costs[1], "mixer.out_proj") == outputs
    assert per_block(costs[1], "mlp") == mlps


@some_passes
def test_a_window_with_labels_costs_one_pass(tiny_model: MakeModel, N: int) -> None:
    model = tiny_model(*LAYERS["gdn"])
    with counted(model) as calls:
        rollout(model, text(2 * L), labels(0, 1, length=2 * L), asleep(N))
    assert per_block(calls, "mixer") == per_block(calls, "mlp") == [2] * 5
    assert calls["lm_head"] == 1


@some_passes
def test_reading_for_the_newest_logits_alone_costs_what_sleep_does(tiny_model: MakeModel, N: int) -> None:
    """Three full windows cost as much as in a rollout that sleeps over them, and the head sees one token."""
    model, seen = tiny_model(*LAYERS["gdn"]), list[int]()
    handle = model.lm_head.register_forward_pre_hook(lambda _, h: seen.append(h[0].shape[1]))
    with counted(model) as reading:
        read(model, text(), Context.empty(model), asleep(N), newest_only=True)
    handle.remove()
    with counted(model) as rolling:
        rollout(model, text(), labels(3), asleep(N))
    assert reading == rolling
    assert seen == [1]


@some_passes
def test_a_transformer_computes_nothing_in_its_sleep(tiny_model: MakeModel, N: int) -> None:
    """Nothing it could compute there would outlive hard eviction."""
    model = tiny_model("attn", "attn")
    with counted(model) as calls:
        rollout(model, text(), labels(3), asleep(N))
    assert calls["layers.0.mixer"] == calls["layers.0.mlp"] == calls["layers.1.mixer"] == calls["lm_head"] == 1


@each_eviction
@pytest.mark.parametrize("N", [1, 2])
def test_memory_is_flat_over_any_text(tiny_model: MakeModel, eviction: str, N: int) -> None:
    """At most L tokens cached (2 L − 1 sliding), and the same bytes at the same place of every window."""
    model, config = tiny_model("attn", "gdn", "jet"), asleep(N, eviction, window_size=4)
    context, bytes_at = Context.empty(model), [set[int]() for _ in range(4)]
    with torch.no_grad():
        for i, token in enumerate(text(80).split(1, 1)):
            _, context = read(model, token, context, config)
            for entry in context.state.cache + context.window_start.cache:
                if isinstance(entry, KVCache):
                    assert entry.k.shape[1] == entry.v.shape[1] <= (4 if eviction == "hard" else 7)
            storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors(context)}
            if i >= 8:
                bytes_at[i % 4].add(sum(storages.values()))
    assert [len(different) for different in bytes_at] == [1] * 4
